"""ERNIE 1 to 3 (Sun et al. 2021, arXiv:2107.02137): BERT that may be told the task; here always the first."""

from easydel.families._parts import Decoder, HFConfig, Transform, family
from easydel.families.bert import TRANSFORMED, embed, encoder, names, norm

TASKS = {r"model\.embed_tasks": "ernie.embeddings.task_type_embeddings"}


@family("ernie", names("ernie", "cls.predictions", TRANSFORMED | TASKS))
def ernie(c: HFConfig) -> Decoder:
    tasks = c.task_type_vocab_size
    own = embed(c, tasks=tasks if c.use_task_id else 0)
    return encoder(c, own, Transform(c.hidden_act, norm(c)))
