"""Small tokenizers of each kind, built here, with texts and a chat to try them on."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox doesn't jump over 13 lazy dogs.",
    "It's said: 'we're done, aren't we?' They've all gone!",
    "Gruesse aus Koeln, \u4f60\u597d\u4e16\u754c, \u043f\u0440\u0438\u0432\u0435\u0442, \U0001f600\U0001f680 caf\u00e9",
    "def f(x):\n    return x  +   1\n",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two  spaces ",
    "unseen: \U0001f984 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "<s>user</s>hi<|end|>x",
]
TEMPLATE = """{%- for message in messages -%}
    {%- if message.role not in ["user", "assistant", "system"] -%}
        {{ raise_exception("unknown role " + message.role) }}
    {%- endif -%}
    {{ bos_token + "[" + message["role"] + "]" + message.content | trim + eos_token }}
    {%- if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
    {% generation %}
{{ {"tools": tools, "e": "\u00e9<&>"} | tojson }}{% endgeneration %}
{% if add_generation_prompt %}<|end|>[assistant]{% endif %}
{{- year | default("") }}"""
CHAT = [
    {"role": "user", "content": " Hello, it's me! "},
    {"role": "assistant", "content": "caf\u00e9", "tool_calls": None},
]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "pad_token": "<pad>"}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def byte_level() -> FastTokenizer:
    backend = FastTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def byte_fallback() -> FastTokenizer:
    """As Llama's first tokenizer."""
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581a", "he", "\u2581\u2581"]:
        vocabulary[token] = len(vocabulary)
    merges = [("\u2581", "a"), ("h", "e"), ("\u2581", "\u2581")]
    backend = FastTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return backend


def metaspace() -> FastTokenizer:
    backend = FastTokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


def word_piece() -> FastTokenizer:
    backend = FastTokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


KINDS = {kind.__name__: kind for kind in (byte_level, byte_fallback, metaspace, word_piece)}


LANGUAGES = ("eng_Latn", "fra_Latn")


def with_languages(backend: FastTokenizer) -> FastTokenizer:
    """One as NLLB's: the language stands before the text, and an end behind it."""
    backend = FastTokenizer.from_str(backend.to_str())
    backend.add_special_tokens(list(LANGUAGES))
    ids = [(token, backend.token_to_id(token)) for token in (LANGUAGES[0], "</s>")]
    template = {"single": f"{LANGUAGES[0]} $A </s>", "pair": f"{LANGUAGES[0]} $A $B </s>"}
    backend.post_processor = processors.TemplateProcessing(**template, special_tokens=ids)
    return backend


def save(folder: Path, backend: FastTokenizer, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    backend = FastTokenizer.from_str(backend.to_str())  # the given one belongs to all tests
    backend.enable_truncation(4)  # left over from training, in many a checkpoint
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIG, "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


BACKENDS = {name: kind() for name, kind in KINDS.items()}
