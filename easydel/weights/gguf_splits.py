"""The ways in which byte-level BPE cuts text before merging, by the names that GGUF files give them.

The names are explained in llama.cpp (src/llama-vocab.cpp), and by the tokenizer.json that each was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}", r" ?[^\s\p{L}\p{M}")
_SEED = _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KIMI_UPPER, _KIMI_LOWER = (rf"[{letters}&&[^\p{{Han}}]]" for letters in (_UPPER, _LOWER))
_KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_ENDINGS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Cuts of one another's pieces: numbers, Chinese and Japanese, then the rest.
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Groups of three from the last digit on; scripts that go without spaces; then DeepSeek-V3's words.
_AFMOE = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0eff\u1780-\u17ff"
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
    _DEEPSEEK_V3[2],
)
_JAIS2 = _LLAMA3.replace(
    r"\s+(?!\S)|\s+", "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s"
)
_EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters with a case, without those that Unicode has as such since 2014: Georgian's, and mathematical ones.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u10d0-\u10ff\u2d00-\u2d2d\ua790-\ua7ff\uab30-\uab6f"
    r"\x{10570}-\x{105bf}\x{16e40}-\x{16e7f}\x{1d400}-\x{1dfff}]]"
)
_MARKS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
_DEEPSEEK_LLM = (r"[\r\n]", rf"\s?{_CASED}+", rf"\s?{_MARKS}+", r"\s+$", _CJK, r"\p{N}+")
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


@dataclass(frozen=True)
class Split:
    """The way in which byte-level BPE cuts text before merging: by `pattern`, or like GPT-2, after single `digits`.

    Of several patterns each cuts the pieces that the ones before left; `after` cuts bytes as they are spelled.
    `whole`: a piece that is a token is not merged again. `bos`: texts begin with it unless the file says no.
    """

    pattern: str | tuple[str, ...] | None = None
    after: tuple[str, ...] = ()
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        patterns = (self.pattern,) if isinstance(self.pattern, str) else self.pattern or ()
        first = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else [*map(_isolated, patterns)]
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        return pre_tokenizers.Sequence([*first, bytes_, *map(_isolated, self.after)])


def _isolated(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_SPLITS: dict[Split, tuple[str, ...]] = {
    Split(): (
        *("default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "exaone4"),
        *("gigachat", "a.x-4.0", "mellum"),
    ),
    Split(digits=True): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    Split(_LLAMA3, whole=True, bos=True): (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "lfm2",
    ),
    Split(_LLAMA3): ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    Split(_QWEN2, nfc=True): ("qwen2", "deepseek-r1-qwen", "kormo", "megrez"),
    Split(_QWEN2): ("stablelm2", "hunyuan", "solar-open", "grok-2"),
    Split(_TEKKEN, whole=True, bos=True): ("tekken",),
    Split(_GPT4O): ("gpt-4o", "llama4", "minimax-m2"),
    Split(_DEEPSEEK_V3): ("deepseek-v3", "hunyuan-dense"),
    Split(_DEEPSEEK_LLM): ("deepseek-llm",),
    Split(_DEEPSEEK_CODER): ("deepseek-coder",),
    Split((r"[\p{P}$+<=>^`|~]+", _GPT2), after=(r"\p{N}+", "[0-9][0-9][0-9]")): ("falcon",),
    Split(_KIMI): ("kimi-k2",),
    Split(_QWEN35, nfc=True): ("qwen35",),
    Split(_SEED): ("seed-coder",),
    Split(_AFMOE): ("afmoe",),
    Split(_JAIS2): ("jais-2",),
    Split(_EXAONE_MOE): ("exaone-moe",),
    Split(_BLOOM): ("bloom", "poro-chat", "gpt3-finnish"),
}
SPLITS = {name: split for split, names in _SPLITS.items() for name in names}
