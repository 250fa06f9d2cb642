"""ELECTRA's generator (Clark et al. 2020, arXiv:2003.10555): BERT with smaller token vectors than features."""

from easydel.families._parts import Decoder, HFConfig, Names, Transform, family
from easydel.families.bert import body, embed, encoder, norm

NAMES = Names(
    body("electra")
    | {
        r"model\.project_in": "electra.embeddings_project",
        r"lm_head\.dense": "generator_predictions.dense",
        r"lm_head\.norm": "generator_predictions.LayerNorm",
        "lm_head": "generator_lm_head",
    },
    ignored=(r"generator_lm_head\.weight", r"electra\.embeddings\.position_ids", r"discriminator_predictions\..*"),
    prefix="electra",
)


@family("electra", NAMES)
def electra(c: HFConfig) -> Decoder:
    width = c.embedding_size
    return encoder(c, embed(c, width=width, projected="after", bias=True), Transform("gelu", norm(c), width))
