"""GIT's text decoder (Wang et al. 2022, arXiv:2205.14100): BERT, causal, without the images that it writes about."""

from easydel.families._parts import Decoder, HFConfig, Names, family
from easydel.families.bert import body, embed, encoder

SEEN = (r"git\.(image_encoder|visual_projection|img_temporal_embedding)\..*", r"git\.embeddings\.position_ids")


def names(c: HFConfig) -> Names:
    tied = (r"output\.weight",) if c.tie_word_embeddings else ()
    return Names(body("git") | {"lm_head": "output"}, ignored=(*SEEN, *tied), prefix="git")


@family("git", names, inert={"num_image_with_embedding": "of videos"})
def git(c: HFConfig) -> Decoder:
    return encoder(c, embed(c, types=0), None, causal=True)
