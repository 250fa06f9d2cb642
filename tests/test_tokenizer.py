"""Our tokenizers against transformers', on tokenizers built here."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from built_tokenizers import BACKENDS, KINDS, TEXTS, byte_fallback, byte_level, save, word_piece
from hypothesis import given, strategies as st
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from easydel import ArgumentError, ConfigError, EasyDeLError
from easydel.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer.json; those that are not BPE clean up spaces."""
    extra = ["<|end|>"]
    return save(
        tmp_path_factory.mktemp(request.param),
        KINDS[request.param](),
        additional_special_tokens=extra,
        clean_up_tokenization_spaces=True,
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    return save(tmp_path / "bpe", byte_level())


def ids_of(folder: Path, text: str) -> list[int]:
    return load_tokenizer(folder).encode(text)


# Encode and decode


def test_encodes_and_decodes_as_transformers(folder: Path, ours: Tokenizer):
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)


def test_roles_are_those_of_transformers(folder: Path, ours: Tokenizer):
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 3)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 3)


def test_tokens_that_only_the_config_has_are_added_as_transformers_adds_them(tmp_path: Path):
    listed = {"9": AddedToken("<second>", special=True), "7": AddedToken("first", lstrip=True)}
    decoder = {id: json.loads(json.dumps(token.__getstate__())) for id, token in listed.items()}
    save(tmp_path, byte_level(), added_tokens_decoder=decoder, sep_token="<sep>", image_token="<image>")
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "a first <second><sep> b<image>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert ours.special_tokens["image_token"] == "<image>"


@pytest.mark.parametrize("listed", [{"<|end|>": 1, "two words": 0}, {"<|end|>": 0}, {"<s>": None}])
def test_tokens_that_only_added_tokens_json_has_are_added_as_transformers_adds_them(tmp_path: Path, listed: dict):
    backend = byte_level()
    size = backend.get_vocab_size()
    listed = {token: backend.token_to_id(token) if place is None else size + place for token, place in listed.items()}
    save(tmp_path, backend, additional_special_tokens=["<|end|>"] if "<|end|>" in listed else [])
    (tmp_path / "added_tokens.json").write_text(json.dumps(listed))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "a two words<|end|> b"
    assert ours.encode(text) == theirs.encode(text)
    assert {token: ours.backend.token_to_id(token) for token in listed} == listed
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_added_tokens_with_ids_that_they_cannot_get_are_refused(bpe: Path):
    (bpe / "added_tokens.json").write_text('{"<|end|>": 5000}')
    with pytest.raises(ConfigError, match=r"added_tokens.json: gives '<\|end\|>' the id 5000, but tokenizer.json"):
        load_tokenizer(bpe)


def test_older_checkpoints_keep_roles_in_special_tokens_map(tmp_path: Path):
    save(tmp_path, byte_level(), eos_token="<unk>")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    assert load_tokenizer(tmp_path).eos_token_id == AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 3


def test_roles_without_a_token_come_from_the_models_config(tmp_path: Path):
    save(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8], "bos_token_id": None}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (7, None)


def test_a_weight_file_brings_the_tokenizer_beside_it(bpe: Path):
    (bpe / "model.safetensors").touch()
    assert ids_of(bpe / "model.safetensors", "fox") == ids_of(bpe, "fox")


def test_several_texts_are_padded_on_the_left_and_decoded_as_by_transformers(bpe: Path):
    ours, theirs = load_tokenizer(bpe), AutoTokenizer.from_pretrained(bpe, padding_side="left")
    texts = ["the quick", "fox", ""]
    expected = theirs(texts, padding=True, return_token_type_ids=False)
    assert ours(texts, padding=True) == dict(expected)
    assert ours("fox") == dict(theirs("fox", return_token_type_ids=False))
    arrays = ours(texts, padding=True, padding_side="right", return_tensors="np")
    assert arrays["attention_mask"][1].tolist() == sorted(expected["attention_mask"][1], reverse=True)
    assert ours.batch_decode(arrays["input_ids"]) == theirs.batch_decode(arrays["input_ids"], skip_special_tokens=True)
    with pytest.raises(ArgumentError, match="unequal lengths make no array; pass padding=True"):
        ours(texts, return_tensors="np")
    with pytest.raises(ArgumentError, match="decode takes one row of token ids; batch_decode takes several"):
        ours.decode([[3, 4], [5, 6]])  # type: ignore[list-item]


def test_what_is_no_text_and_no_id_is_an_argument_error(bpe: Path):
    tokenizer = load_tokenizer(bpe)
    for text in ("\udc80", 5):
        with pytest.raises(ArgumentError, match="valid Unicode"):
            tokenizer.encode(text)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="from 0 to"):
        tokenizer.decode([-100])


# Stream


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_joins_to_the_decoded(ours: Tokenizer, text: str):
    ids = ours.encode(text)
    for skip in (True, False):
        pieces = list(ours.stream(iter(ids), skip_special_tokens=skip))
        assert "".join(pieces) == ours.decode(ids, skip_special_tokens=skip)
        assert all(pieces)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "word_piece"])
@given(ids=st.lists(st.integers(0, 125), max_size=40))
def test_any_ids_stream_to_what_they_decode_to(kind: str, ids: list[int]):
    tokenizer = Tokenizer(BACKENDS[kind], cleans=kind != "byte_level")
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=30))
def test_any_text_streams_through_byte_tokens(text: str):
    tokenizer = Tokenizer(BACKENDS["byte_fallback"])
    ids = tokenizer.encode(text)
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_no_piece_holds_half_a_character(kind: str):
    tokenizer = Tokenizer(BACKENDS[kind])
    pieces = list(tokenizer.stream(tokenizer.encode("\U0001f984\u0e2a\u0e27!")))
    assert pieces == ["\U0001f984", "\u0e2a", "\u0e27", "!"]


def test_a_character_that_never_completes_comes_at_the_end():
    tokenizer = Tokenizer(BACKENDS["byte_level"])
    ids = tokenizer.encode("fox \U0001f984")[:-1]
    assert list(tokenizer.stream(ids))[-1].endswith("\ufffd")
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


def test_text_comes_as_soon_as_it_is_settled():
    tokenizer = Tokenizer(BACKENDS["byte_level"])
    ids = tokenizer.encode("quick brown fox", add_special_tokens=False)
    given: list[int] = []

    def source():
        for id in ids:
            given.append(id)
            yield id

    told = ""
    for piece in tokenizer.stream(source()):
        told += piece
        assert told == tokenizer.decode(given), "nothing is held back"
    assert told == "quick brown fox"


def test_cleaning_up_does_not_take_back_what_was_shown():
    tokenizer = Tokenizer(BACKENDS["word_piece"], cleans=True)
    ids = tokenizer.encode("they aren't done , he said ; it's me !")
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "aren't done," in "".join(pieces)
    assert len(pieces) > 5


# Broken files


def test_a_directory_without_a_tokenizer_lists_what_it_holds(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no tokenizer; it holds config.json; expected a tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "\udc80"),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"eos_token": {"content": null}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [5]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"contents": "a"}}}'),
        ("tokenizer_config.json", '{"additional_special_tokens": [{}]}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}'),
        ("tokenizer_config.json", '{"chat_template": {"default": null}}'),
        ("special_tokens_map.json", "5"),
        ("config.json", "{"),
        ("added_tokens.json", '{"a": "b"}'),
        ("chat_template.jinja", "\udcff"),
    ],
)
def test_a_broken_file_is_named(bpe: Path, name: str, content: str):
    (bpe / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(bpe)
    assert caught.value.file == str(bpe / name)


def test_a_tokenizer_that_cannot_encode_what_it_meets_is_named(tmp_path: Path):
    backend = word_piece()
    backend.model.unk_token = "<absent>"
    tokenizer = load_tokenizer(save(tmp_path, backend))
    with pytest.raises(ConfigError, match=f"{tmp_path}: the tokenizer fails: WordPiece error"):
        tokenizer.encode("\U0001f984")


def test_a_panic_of_the_library_is_an_error_that_names_the_tokenizer(tmp_path: Path):
    backend = word_piece()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    file = save(tmp_path, backend) / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="the tokenizer fails: no entry found"):
        load_tokenizer(tmp_path).encode("fox")


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "continuing\\u005fsubword_prefi\\u0078"])
def test_merges_without_the_prefix_are_refused_before_the_library_aborts(tmp_path: Path, key: str):
    text = save(tmp_path, byte_fallback()).joinpath("tokenizer.json").read_text(encoding="utf-8")
    text = text.replace('"continuing_subword_prefix": null', f'"{key}": "x"')
    assert key in text
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="whose second part lacks the prefix 'x'"):
        load_tokenizer(tmp_path)


@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=3))
def test_a_damaged_tokenizer_json_never_escapes_as_another_error(
    cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("damaged")
    text = BACKENDS["word_piece"].to_str().encode()
    cut %= len(text)
    (folder / "tokenizer.json").write_bytes(text[:cut] + junk + text[cut + len(junk) + 1 :])
    with suppress(EasyDeLError):
        load_tokenizer(folder)
