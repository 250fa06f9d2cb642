"""BERT (Devlin et al. 2018, arXiv:1810.04805) as a language model: causal if `is_decoder`, else seen both ways."""

from collections.abc import Callable
from typing import Any

from easydel.families._parts import (
    MLP,
    Around,
    Attention,
    Block,
    Blocks,
    Causal,
    Decoder,
    Embed,
    Head,
    Heads,
    HFConfig,
    LayerNorm,
    Learned,
    Names,
    Post,
    Rope,
    Transform,
    family,
)

TRANSFORMED = {
    r"lm_head\.dense": "cls.predictions.transform.dense",
    r"lm_head\.norm": "cls.predictions.transform.LayerNorm",
}


def body(prefix: str) -> dict[str, str]:
    """What all but the head is called in files of BERT and its kin."""
    return {
        r"model\.embed_tokens": f"{prefix}.embeddings.word_embeddings",
        r"model\.embed_positions": f"{prefix}.embeddings.position_embeddings",
        r"model\.embed_types": f"{prefix}.embeddings.token_type_embeddings",
        r"model\.embed_layernorm": f"{prefix}.embeddings.LayerNorm",
        r"model\.layers": f"{prefix}.encoder.layer",
        r"self_attn\.q_proj": "attention.self.query",
        r"self_attn\.k_proj": "attention.self.key",
        r"self_attn\.v_proj": "attention.self.value",
        r"self_attn\.o_proj": "attention.output.dense",
        "attn_output_layernorm": "attention.output.LayerNorm",
        r"mlp\.up_proj": "intermediate.dense",
        r"mlp\.down_proj": "output.dense",
        "mlp_output_layernorm": "output.LayerNorm",
    }


def names(prefix: str, head: str, renames: dict[str, str]) -> Callable[[HFConfig], Names]:
    """The table of files that call the body `prefix`, and the head with its copy of the token vectors `head`.decoder.

    A tied head's bias is `head`.bias, another's stands beside its kernel. Old files call a norm's scale and bias gamma
    and beta.
    """
    kernel, bias, copied = f"{head}.decoder.weight", f"{head}.bias", f"{head}.decoder.bias"
    unread = (rf"{prefix}\.embeddings\.(position|token_type)_ids", rf"({prefix}\.)?pooler\..*", r"cls\.seq_rel.*")

    def table(c: HFConfig) -> Names:
        own, ignored = (bias, (kernel, copied)) if c.tie_word_embeddings else (copied, (bias,))
        norms = [f"{prefix}.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
        for layer in range(c.num_hidden_layers):
            norms += [f"{prefix}.encoder.layer.{layer}.{part}output.LayerNorm" for part in ("attention.", "")]
        old = {f"{norm}.{new}": (f"{norm}.{old}",) for norm in norms for new, old in OLD_LEAVES.items()}
        return Names(
            body(prefix) | renames | {r"lm_head\.weight": kernel, r"lm_head\.bias": own},
            ignored=(*unread, *(name.replace(".", r"\.") for name in ignored)),
            prefix=prefix,
            substitutes=old | {copied: (bias,), bias: (copied,)},
        )

    return table


OLD_LEAVES = {"weight": "gamma", "bias": "beta"}


def norm(c: HFConfig) -> LayerNorm:
    return LayerNorm(c.layer_norm_eps)


def embed(c: HFConfig, *, first: int = 0, **choices: Any) -> Embed:
    """Tokens, positions (the first one is row `first` of their table) and types, then a norm."""
    own = {"positions": Learned(c.max_position_embeddings - first, first), "norm": norm(c)}
    own |= {} if "types" in choices else {"types": c.type_vocab_size}
    return Embed(**own | choices)


def encoder(
    c: HFConfig,
    embed: Embed,
    transform: Transform | None,
    *,
    pre_norm: bool = False,
    tied: bool | None = None,
    position: Rope | Blocks | None = None,
    biased: str = "qkvo",
    causal: bool | None = None,
) -> Decoder:
    """BERT's layers between `embed` and a head with a bias, with norms after each part or (`pre_norm`) before.

    They are `causal`, or by default as `is_decoder` says.
    """
    c.only("position_embedding_type", "absolute")
    heads, own = c.num_attention_heads, norm(c)
    sight = Causal() if (c.is_decoder if causal is None else causal) else Around()
    mixer = Attention(Heads(heads, heads, c.hidden_size // heads, biased=biased), position, sight)
    ffn = MLP(c.intermediate_size, c.hidden_act)
    if pre_norm:
        layer = Block(mixer, ffn, attn_in=own, ffn_in=own)
    else:
        layer = Block(mixer, ffn, attn_out=own, ffn_out=own, residual=Post())
    return Decoder.from_hf(
        c,
        blocks=[layer] * c.num_hidden_layers,
        final_norm=own if pre_norm else None,
        head=Head(c.tie_word_embeddings if tied is None else tied, bias=True, transform=transform),
        embed=embed,
    )


@family("bert", names("bert", "cls.predictions", TRANSFORMED))
def bert(c: HFConfig) -> Decoder:
    return encoder(c, embed(c), Transform(c.hidden_act, norm(c)))
