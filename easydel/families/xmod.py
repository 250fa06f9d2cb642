"""X-MOD (Pfeiffer et al. 2022, arXiv:2205.06266): RoBERTa with an adapter for each language behind every layer."""

from dataclasses import replace

from easydel.families._parts import MLP, ConfigError, Decoder, HFConfig, LanguageAdapted, Names, Transform, family
from easydel.families._records import widened
from easydel.families.bert import embed, encoder, names as bert_names, norm
from easydel.families.roberta import HEAD

ADAPTERS = {
    r"adapters\.([^.]+)\.up_proj": r"output.adapter_modules.\1.dense1",
    r"adapters\.([^.]+)\.down_proj": r"output.adapter_modules.\1.dense2",
    "adapter_layernorm": "output.adapter_layer_norm",
}
PRE_NORM = {"input_layernorm": "attention.output.LayerNorm", "post_attention_layernorm": "output.LayerNorm"}
FINAL = {r"model\.norm": "roberta.encoder.LayerNorm"}


def names(c: HFConfig) -> Names:
    return bert_names("roberta", "lm_head", HEAD | ADAPTERS | PRE_NORM | FINAL)(c)


def chosen(c: HFConfig) -> str:
    """The language that the text is in."""
    language, known = c.get("default_language"), c.languages
    if language not in known:
        problem = f"default_language is {language!r}, expected one of {', '.join(known)}"
        raise ConfigError(problem, file=c.file, hint=f"choose one: config_kwargs={{'default_language': {known[0]!r}}}")
    return language


@family("xmod", names)
def xmod(c: HFConfig) -> Decoder:
    plain = encoder(c, embed(c, first=c.pad_token_id + 1), Transform("gelu", norm(c)), pre_norm=c.pre_norm)
    adapter = MLP(c.hidden_size // c.adapter_reduction_factor, c.hidden_act)
    block, own_norm = plain.blocks[0], norm(c) if c.adapter_layer_norm else None
    adapted = widened(
        LanguageAdapted,
        block,
        adapter=adapter,
        languages=tuple(c.languages),
        language=chosen(c),
        own_norm=own_norm,
        reuse=c.adapter_reuse_layer_norm,
        from_read=c.ln_before_adapter,
    )
    return replace(plain, blocks=(adapted,) * len(plain.blocks))
