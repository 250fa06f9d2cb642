"""The order of value heads in GGUF files of Qwen3.5: one of each key in turn, where the Hub has each key's together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import ConfigError
from easydel.weights.expressions import Index, with_ends
from easydel.weights.gguf_tensors import Change, Config, HFTensor, convolution, exponential
from easydel.weights.sources import Changed, TensorSource


@dataclass(frozen=True, eq=False)
class ByColumns(Changed):
    """A matrix whose column c is the file's column `columns[c]`."""

    columns: np.ndarray

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns the slice `index`; of the file's columns, the span that holds it is read."""
        rows, columns = with_ends(index, self.shape)
        wanted = self.columns[columns]
        first, stop = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        return self.of.read((rows, slice(first, stop)))[:, wanted - first]


def _order(tensor: Tensor, config: Config, axis: int, size: int, before: int) -> np.ndarray:
    """Returns the file's place of each number along `axis`: heads of `size` behind `before` others that stay."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    found = tensor.shape[axis] if len(tensor.shape) > axis else 0
    if found != before + values * size or values % keys:
        problem = (
            f"is {list(tensor.shape)}, expected {before + values * size}: {values} heads of values, {keys} of keys"
        )
        raise ConfigError(problem, file=tensor.file, tensor=tensor.name)
    heads = np.arange(values * size).reshape(values // keys, keys, size).swapaxes(0, 1).ravel()
    return np.concatenate([np.arange(before), before + heads])


def _sizes(config: Config) -> tuple[int, int]:
    """Returns the channels of a value's head, and those of all queries and keys."""
    return config["linear_value_head_dim"], 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]


def _by_head(tensor: Tensor, config: Config) -> TensorSource:
    return HFTensor(tensor, rows=_order(tensor, config, 0, 1, 0))


def _decay(tensor: Tensor, config: Config) -> TensorSource:
    plain = exponential(tensor, config)
    return HFTensor(plain.tensor, rows=_order(plain.tensor, config, 0, 1, 0), log=True)


def _values(tensor: Tensor, config: Config) -> TensorSource:
    return HFTensor(tensor, rows=_order(tensor, config, 0, _sizes(config)[0], 0))


def _queries_keys_values(tensor: Tensor, config: Config) -> TensorSource:
    return HFTensor(tensor, rows=_order(tensor, config, 0, *_sizes(config)))


def _convolutions(tensor: Tensor, config: Config) -> TensorSource:
    return HFTensor(convolution(tensor, config), rows=_order(tensor, config, 0, *_sizes(config)))


def _from_values(tensor: Tensor, config: Config) -> TensorSource:
    return ByColumns(tensor, _order(tensor, config, 1, _sizes(config)[0], 0))


IN_TURNS: dict[str, Change] = {
    r"attn_qkv\.weight": _queries_keys_values,
    r"attn_gate\.weight": _values,
    r"ssm_(alpha|beta)\.weight|ssm_dt\.bias": _by_head,
    r"ssm_a": _decay,
    r"ssm_conv1d\.weight": _convolutions,
    r"ssm_out\.weight": _from_values,
}
