"""BigBird (Zaheer et al. 2020, arXiv:2007.14062): BERT for long texts, seen in blocks unless `is_decoder`."""

from easydel.families._parts import Blocks, Decoder, HFConfig, Transform, family
from easydel.families.bert import TRANSFORMED, embed, encoder, names, norm


@family("big_bird", names("bert", "cls.predictions", TRANSFORMED))
def big_bird(c: HFConfig) -> Decoder:
    sparse = c.only("attention_type", "block_sparse", "original_full") == "block_sparse" and not c.is_decoder
    return encoder(
        c,
        embed(c, scale=c.hidden_size**0.5 if c.rescale_embeddings else 1.0),
        Transform(c.hidden_act, norm(c)),
        position=Blocks(c.block_size, c.num_random_blocks) if sparse else None,
        biased="qkvo" if c.use_bias else "o",
    )
