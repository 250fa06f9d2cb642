"""NLLB's mixtures of experts (2022, arXiv:2207.04672): M2M-100 with two of many experts in some of the layers."""

from dataclasses import replace

from easydel.families._parts import (
    MLP,
    Embed,
    EncoderDecoder,
    Head,
    HFConfig,
    MoE,
    ShiftRight,
    Sinusoidal,
    Tower,
    TwoChoices,
    family,
)
from easydel.families._records import with_ffn
from easydel.families.bart import scale, whole
from easydel.families.pegasus import WITHOUT_WAVES

NAMES = WITHOUT_WAVES.extended(
    {
        "cross_attn": "cross_attention",
        "cross_(input|output)_layernorm": "cross_attention_layer_norm",
        "(post_attention|mlp_output)_layernorm": "ff_layer_norm",
        r"mlp\.up_proj": "ffn.fc1",
        r"mlp\.down_proj": "ffn.fc2",
        r"mlp\.gate": "ffn.router.classifier",
        r"mlp\.experts\.\*\.up_proj": "ffn.experts.expert_*.fc1",
        r"mlp\.experts\.\*\.down_proj": "ffn.experts.expert_*.fc2",
    }
)
INERT = {"router_ignore_padding_tokens": "padding is not routed in any case"}


def router(c: HFConfig) -> TwoChoices:
    c.only("router_dtype", "float32")
    c.only("second_expert_policy", "all")  # others leave second choices to chance
    fraction = c.moe_eval_capacity_token_fraction
    return TwoChoices(
        c.expert_capacity,
        fraction if fraction > 0 else None,
        c.batch_prioritized_routing,
        renormalize=not c.normalize_router_prob_before_dropping,
        scale=1 - c.moe_token_dropout,  # what training kept of experts' outputs
        bias=c.router_bias,
    )


def with_experts(c: HFConfig, tower: Tower, step: int, width: int) -> Tower:
    """Returns the tower with experts in every `step`-th layer."""
    ffn = MoE(c.num_experts, MLP(width, c.activation_function), router(c))
    return with_ffn(tower, range(step - 1, len(tower.blocks), step) if step > 0 else (), ffn)


@family("nllb-moe", NAMES, inert=INERT, encoder_decoder=True)
def nllb_moe(c: HFConfig) -> EncoderDecoder:
    waves = Sinusoidal(offset=c.pad_token_id + 1, endpoint=True)
    dense = whole(
        c,
        Embed(waves, scale=scale(c)),
        pre_norm=True,
        head=Head(c.tie_word_embeddings),
        shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id),
    )
    return replace(
        dense,
        encoder=with_experts(c, dense.encoder, c.encoder_sparse_step, c.encoder_ffn_dim),
        decoder=with_experts(c, dense.decoder, c.decoder_sparse_step, c.decoder_ffn_dim),
    )
