"""RoFormer (Su et al. 2021, arXiv:2104.09864): BERT with rotary positions, which began here."""

from easydel.families._parts import Decoder, HFConfig, Rope, Transform, family
from easydel.families.bert import TRANSFORMED, embed, encoder, names, norm

RENAMES = TRANSFORMED | {r"model\.project_in": "roformer.embeddings_project"}
WAVES = r"roformer\.encoder\.embed_positions\.weight"  # a table of what can be computed


@family("roformer", lambda c: names("roformer", "cls.predictions", RENAMES)(c).extended(ignored=(WAVES,)))
def roformer(c: HFConfig) -> Decoder:
    c.only("rotary_value", False)
    width = c.get("embedding_size") or c.hidden_size
    rope = Rope(c.hidden_size // c.num_attention_heads, interleaved=True)
    own = embed(c, positions=None, width=width, projected="after", bias=True)
    return encoder(c, own, Transform(c.hidden_act, norm(c), width), position=rope)
