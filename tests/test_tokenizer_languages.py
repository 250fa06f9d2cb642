"""Tokenizers of translation models put the languages' tokens where transformers puts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from built_tokenizers import LANGUAGES, SPECIAL, TEXTS, metaspace, save, with_languages
from test_tokenizer_formats import sentencepiece_model

from easydel import load_tokenizer
from easydel.errors import ArgumentError

ENGLISH, FRENCH = LANGUAGES
TEXT = "the quick fox"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path, with_languages(metaspace()), chat_template=None)


def test_inputs_and_targets_carry_their_language(folder: Path):
    plain, both = load_tokenizer(folder), load_tokenizer(folder, src_lang=FRENCH, tgt_lang=ENGLISH)
    english, french = (both.language_id(language) for language in (ENGLISH, FRENCH))
    body = plain.encode(TEXT, add_special_tokens=False)
    assert plain.encode(TEXT) == plain.encode_target(TEXT) == [english, *body, 2]
    assert both.encode(TEXT) == [french, *body, 2]
    assert both.encode_target(TEXT) == [english, *body, 2]
    assert load_tokenizer(folder, tgt_lang=FRENCH).encode(TEXT) == [english, *body, 2]


def test_an_unknown_language_and_one_without_a_place_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(ArgumentError, match=r"no token for the language 'fr_Latn'; did you mean .*fra_Latn"):
        load_tokenizer(folder, src_lang="fr_Latn")
    without = tmp_path_factory.mktemp("without")
    save(without, metaspace(), chat_template=None)
    with pytest.raises(ArgumentError, match="'<s>' is given, but the tokenizer puts no language around a text"):
        load_tokenizer(without, tgt_lang="<s>")


def write_m2m_100(folder: Path) -> dict[str, str]:
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model())
    pieces = [*SPECIAL, "\u2581the", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    return {"src_lang": "de", "tgt_lang": "fr"}


def write_marian(folder: Path) -> dict[str, str]:
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(sentencepiece_model())
    pieces = ["</s>", "<unk>", "<pad>", "\u2581the", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return {}


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize(("write", "named"), [(write_m2m_100, "M2M100Tokenizer"), (write_marian, "MarianTokenizer")])
def test_sentencepiece_pairs_are_read_as_transformers_reads_them(
    write: Callable[[Path], dict[str, str]], named: str, tmp_path: Path
):
    languages = write(tmp_path)
    reference = getattr(transformers, named).from_pretrained(tmp_path, **languages)
    ours = load_tokenizer(tmp_path, src_lang=languages.get("src_lang"), tgt_lang=languages.get("tgt_lang"))
    for text in TEXTS[:3]:
        assert ours.encode(text) == reference(text)["input_ids"]
        assert ours.encode_target(text) == reference(text_target=text)["input_ids"]
        ids = reference(text)["input_ids"]
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    if languages:
        assert ours.language_id("fr") == reference.get_lang_id("fr")
        assert ours.encode(TEXT)[0] == ours.language_id("de")
    else:
        with pytest.raises(ArgumentError, match="src_lang='de', but MarianTokenizer has no languages"):
            load_tokenizer(tmp_path, src_lang="de")
