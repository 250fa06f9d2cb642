"""The weight files of a checkpoint as named lazy tensors; knows nothing of models.

`find_checkpoint` picks the files of a directory, `open_checkpoint` reads their headers, `Tensor.read` reads any part.
"""

from easydel.checkpoint.files import find_checkpoint
from easydel.checkpoint.open import Checkpoint, open_checkpoint
from easydel.checkpoint.tensor import Tensor

__all__ = ["Checkpoint", "Tensor", "find_checkpoint", "open_checkpoint"]
