"""RemBERT (Chung et al. 2020, arXiv:2010.12821): BERT with small token vectors and a large head, never tied."""

from easydel.families._parts import Decoder, HFConfig, Names, Transform, UnsupportedModelError, family
from easydel.families.bert import body, embed, encoder, norm

NAMES = Names(
    body("rembert")
    | {
        r"model\.project_in": "rembert.encoder.embedding_hidden_mapping_in",
        r"lm_head\.dense": "cls.predictions.dense",
        r"lm_head\.norm": "cls.predictions.LayerNorm",
        "lm_head": "cls.predictions.decoder",
    },
    ignored=(r"rembert\.embeddings\.position_ids", r"(rembert\.)?pooler\..*"),
    prefix="rembert",
)


@family("rembert", NAMES, inert={"tie_word_embeddings": "the head has another size"})
def rembert(c: HFConfig) -> Decoder:
    width = c.input_embedding_size
    if width == c.hidden_size:
        raise UnsupportedModelError("token vectors as large as features (input_embedding_size)", file=c.file)
    own = embed(c, width=width, projected="after", bias=True)
    return encoder(c, own, Transform(c.hidden_act, norm(c), c.output_embedding_size), tied=False)
