"""The tokenizer in the metadata of a GGUF file.

There are four kinds: "gpt2", byte-level BPE with its merges, where `tokenizer.ggml.pre` names the way to split text;
"llama", SentencePiece BPE without merges, which follow from the vocabulary's scores; "gemma4", the same with merges;
"t5", SentencePiece's unigram model, whose scores are probabilities.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from easydel.errors import ConfigError, UnsupportedModelError
from easydel.weights.gguf_splits import SPLITS

ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
SPACE = "\u2581"  # SentencePiece's character for a space
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # the tokens of a character that no other token has
logger = logging.getLogger(__name__)


def tokenizer_json(metadata: Mapping[str, Any], file: Path | None = None) -> Tokenizer:
    """Returns the tokenizer, with special tokens and, where the model wants them, begin and end of sequence.

    Raises UnsupportedModelError for kinds that are not known here, ConfigError for a broken vocabulary.
    """
    vocabulary = _Vocabulary(metadata, file)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(vocabulary)
    if kind in ("llama", "gemma4"):
        return _sentencepiece(vocabulary)
    if kind == "t5":
        return _unigram(vocabulary)
    raise UnsupportedModelError(
        f"its tokenizer is of kind {str(kind)[:100]!r}", file=file, hint="known: gpt2, llama, gemma4, t5"
    )


def special_tokens(metadata: Mapping[str, Any], file: Path | None = None) -> dict[str, str]:
    """Maps roles to tokens, such as {"eos_token": "</s>"}, for the roles that the file names."""
    return _Vocabulary(metadata, file).roles


def chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name -> Jinja template that makes a prompt of a chat; the one without a name is "default"."""
    key = "tokenizer.chat_template"
    named = {name.removeprefix(f"{key}."): value for name, value in metadata.items() if name.startswith(f"{key}.")}
    return {name: value for name, value in {**named, "default": metadata.get(key)}.items() if isinstance(value, str)}


class _Vocabulary:
    def __init__(self, metadata: Mapping[str, Any], file: Path | None):
        self.metadata, self.file = metadata, file
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ConfigError("holds no vocabulary: tokenizer.ggml.tokens is not a list of strings", file=file)
        self.tokens: list[str] = tokens
        self.types = self._per_token("token_type", default=1)
        self.roles = {role: tokens[number] for role, key in ROLES.items() if (number := self.token_id(key)) is not None}

    def _per_token(self, key: str, default: float) -> np.ndarray:
        values = self.metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            return np.full(len(self.tokens), default)
        if not isinstance(values, np.ndarray) or values.shape != (len(self.tokens),):
            raise ConfigError(f"tokenizer.ggml.{key} is not one number for each token", file=self.file)
        return values

    def token_id(self, key: str) -> int | None:
        number = self.metadata.get(f"tokenizer.ggml.{key}")
        if number is not None and not (type(number) is int and 0 <= number < len(self.tokens)):
            raise ConfigError(f"tokenizer.ggml.{key} is {str(number)[:100]}, not the number of a token", file=self.file)
        return number

    def merges(self) -> list[tuple[str, str]] | None:
        merges = self.metadata.get("tokenizer.ggml.merges")
        if merges is None:
            return None
        if not isinstance(merges, list) or not all(
            isinstance(merge, str) and merge.count(" ") == 1 for merge in merges
        ):
            raise ConfigError("tokenizer.ggml.merges is not a list of pairs", file=self.file)
        return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]

    def scores(self) -> Sequence[float]:
        if "tokenizer.ggml.scores" not in self.metadata:
            raise ConfigError("has neither merges nor scores of its tokens", file=self.file)
        return self._per_token("scores", default=0.0).tolist()

    def bpe(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> Tokenizer:
        with self.making("vocabulary and merges"):
            return Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), **options))

    @contextmanager
    def making(self, parts: str) -> Iterator[None]:
        """Turns the library's errors, which have no class of their own, into one that names the file's `parts`."""
        try:
            yield
        except Exception as error:
            raise ConfigError(f"its {parts} make no tokenizer: {error}", file=self.file) from error

    def finish(self, tokenizer: Tokenizer, spelled: Mapping[str, int], *, bos: bool, eos: bool = False) -> Tokenizer:
        """Adds the tokens that are matched as a whole before the text is cut, and begin and end of sequence."""
        special = [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == CONTROL]
        plain = [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == USER_DEFINED]
        special += [token for token in self.roles.values() if token not in special]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special if token in spelled])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain if token in spelled])
        first = self.roles.get("bos_token") if self.metadata.get("tokenizer.ggml.add_bos_token", bos) else None
        last = self.roles.get("eos_token") if self.metadata.get("tokenizer.ggml.add_eos_token", eos) else None
        around = [token for token in (first, last) if token is not None]
        if around:
            begin, end = ([first] if first else []), ([last] if last else [])
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*begin, "$A", *end],
                pair=[*begin, "$A", *end, *(f"{token}:1" for token in begin), "$B:1", *(f"{token}:1" for token in end)],
                special_tokens=[(token, spelled[token]) for token in dict.fromkeys(around)],
            )
        return tokenizer


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise UnsupportedModelError(
            f"its tokenizer splits text in a way called {str(name)[:100]!r}",
            file=vocabulary.file,
            hint=f"known: {', '.join(SPLITS)}",
        )
    split, merges = SPLITS[name], vocabulary.merges()
    if merges is None:
        raise ConfigError("has no tokenizer.ggml.merges", file=vocabulary.file)
    vocab = dict(_byte_spelled(vocabulary))
    tokenizer = vocabulary.bpe(vocab, merges, ignore_merges=split.whole)
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return vocabulary.finish(tokenizer, vocab, bos=split.bos)


def _byte_spelled(vocabulary: _Vocabulary) -> Iterator[tuple[str, int]]:
    """Yields tokens as byte-level BPE spells them. Tokens that are matched as a whole are spelled as in the text."""
    alphabet = _byte_alphabet()
    letters = set(alphabet)
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (CONTROL, USER_DEFINED) or token in vocabulary.roles.values() or set(token) <= letters:
            yield token, number
        else:
            yield "".join(alphabet[byte] for byte in token.encode("utf-8", "replace")), number


def _byte_alphabet() -> str:
    """Returns GPT-2's character for each byte: itself if visible in Latin-1, else the next one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = iter(range(256, 512))
    return "".join(chr(byte if byte in visible else next(hidden)) for byte in range(256))


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    architecture = str(vocabulary.metadata.get("general.architecture"))
    gemma = architecture.startswith("gemma")
    tokens = vocabulary.tokens
    if gemma:  # runs of spaces are tokens of their own; the converter writes them with plain spaces
        tokens = [
            SPACE * len(token) if token and not token.strip(" ") and len(token) > 1 else token for token in tokens
        ]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = vocabulary.merges()
    if merges is None:
        # Gemma's scores do not follow its merges; the order of its tokens does.
        merges = derived_merges(tokens, vocab, range(0, -len(tokens), -1) if gemma else vocabulary.scores())
    unknown = vocabulary.roles.get("unk_token", "<unk>" if "<unk>" in vocab else None)
    if unknown is None and (missing := [token for token in BYTES if token not in vocab]):
        logger.warning(
            "%s: the vocabulary has no unknown token and none for %d bytes (%s, ...): characters that need these are "
            "left out of texts",
            vocabulary.file,
            len(missing),
            ", ".join(missing[:3]),
        )
    tokenizer = vocabulary.bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefixed = bool(vocabulary.metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    _spell_spaces(tokenizer, architecture, prefixed)
    bos = vocabulary.metadata.get("tokenizer.ggml.add_bos_token", True)
    return vocabulary.finish(tokenizer, vocab, bos=bool(bos))


def _unigram(vocabulary: _Vocabulary) -> Tokenizer:
    get, unknown = vocabulary.metadata.get, vocabulary.token_id("unknown_token_id")
    characters = get("tokenizer.ggml.precompiled_charsmap")
    pieces = list(zip(vocabulary.tokens, vocabulary.scores(), strict=True))
    with vocabulary.making("vocabulary and scores"):
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
        if characters is not None:
            tokenizer.normalizer = normalizers.Precompiled(np.asarray(characters).astype(np.uint8).tobytes())
    scheme = "always" if get("tokenizer.ggml.add_space_prefix", True) else "never"
    spaces = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    words = [pre_tokenizers.WhitespaceSplit()] if get("tokenizer.ggml.remove_extra_whitespaces", True) else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, spaces])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    spelled = {token: number for number, token in enumerate(vocabulary.tokens)}
    return vocabulary.finish(tokenizer, spelled, bos=False, eos=True)


def _spell_spaces(tokenizer: Tokenizer, architecture: str, prefixed: bool) -> None:
    """Sets how the tokenizer handles spaces. No metadata names one of the three ways; the architecture decides."""
    restored = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if architecture.startswith("gemma"):
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif architecture == "phi3":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if prefixed else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    if prefixed and not architecture.startswith("gemma"):
        restored.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(restored)


def derived_merges(tokens: Sequence[str], vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece BPE: every pair of tokens that makes a token, best score first."""
    found: list[tuple[float, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        pairs = [
            (token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in vocab and token[cut:] in vocab
        ]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(score, len(left), left, right) for left, right in pairs]
    found.sort(key=lambda merge: (merge[0], merge[1], len(merge[3])), reverse=True)
    return [(left, right) for _, _, left, right in found]
