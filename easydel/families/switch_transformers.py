"""Switch Transformers (Fedus et al. 2021, arXiv:2101.03961): T5 with one of many experts in some of the layers."""

from dataclasses import replace

from easydel.families import t5
from easydel.families._parts import MLP, EncoderDecoder, FirstChoice, Head, HFConfig, MoE, Tower, family
from easydel.families._records import with_ffn

NAMES = t5.NAMES.extended(
    t5.in_feed_forwards(r"mlp\.up_proj", "mlp.wi")
    | t5.in_feed_forwards(r"mlp\.down_proj", "mlp.wo")
    | t5.in_feed_forwards(r"mlp\.gate", "mlp.router.classifier")
    | t5.in_feed_forwards(r"mlp\.experts\.\*\.up_proj", "mlp.experts.expert_*.wi")
    | t5.in_feed_forwards(r"mlp\.experts\.\*\.down_proj", "mlp.experts.expert_*.wo")
    | {r"model\.(en|de)coder\.embed_tokens": r"\1coder.embed_tokens"},
    ignored=(r"shared\.weight",),  # untied, nothing reads it
    substitutes=dict.fromkeys(t5.TOKENS, ("shared.weight",)),
)
INERT = {"router_ignore_padding_tokens": "padding takes no place in any case"}


def with_experts(tower: Tower, sparse: int, step: int | None, ffn: MoE) -> Tower:
    """Returns the tower with experts in the second of every `step` layers, by default of `sparse` groups of layers."""
    layers = len(tower.blocks)
    if step is None:  # transformers writes it into files
        step = layers // sparse if sparse > 0 else layers
    chosen = range(layers)[1 % step :: step] if step > 0 else ()
    return with_ffn(tower, chosen, ffn)


@family("switch_transformers", NAMES, inert=INERT, encoder_decoder=True)
def switch_transformers(c: HFConfig) -> EncoderDecoder:
    c.only("router_dtype", "float32")
    scale = c.d_model**-0.5 if c.tie_word_embeddings else 1.0
    expert = MLP(c.d_ff, c.dense_act_fn, bias=False)
    dense = t5.whole(c, Head(c.tie_word_embeddings, scale=scale), ffn=expert)
    experts = MoE(c.num_experts, expert, FirstChoice(c.expert_capacity, c.router_bias))
    return replace(
        dense,
        shared=c.tie_word_embeddings,
        encoder=with_experts(dense.encoder, c.num_sparse_encoder_layers, c.get("encoder_sparse_step"), experts),
        decoder=with_experts(dense.decoder, c.num_sparse_decoder_layers, c.get("decoder_sparse_step"), experts),
    )
