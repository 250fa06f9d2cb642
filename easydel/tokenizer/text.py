"""A tokenizer: text to ids, ids to text all at once or as they come, and chats to ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, overload

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from easydel.errors import ArgumentError
from easydel.tokenizer.chat import Template, render, render_marked
from easydel.tokenizer.guard import guarded
from easydel.tokenizer.languages import language_token, speaking

Messages = Sequence[Mapping[str, Any]]
# Arguments of transformers' `apply_chat_template` that change what it returns. Templates do not read them.
NOT_IMPLEMENTED = (
    *("continue_final_message", "sanitize_control_tokens", "padding", "truncation", "max_length"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
REPLACEMENT = "\ufffd"  # what undecodable bytes become: at the end of a text, perhaps half a character


class Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...


class Backend(Protocol):
    """The methods of `tokenizers.Tokenizer` that are used here."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True)
class Tokenizer:
    """Converts text to token ids and back.

    `special_tokens` are the tokens with a role, such as {"eos_token": "</s>"}; templates see them under these names.
    `default_ids` are the ids in the model's config, for roles without a token. `templates` are by name, with "default"
    as the preferred one. If `cleans`, spaces before punctuation and contractions are removed from decoded text.
    `target` reads an encoder-decoder's targets, if it reads them otherwise than its inputs.
    """

    backend: Backend = field(repr=False)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    default_ids: Mapping[str, int] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    cleans: bool = False
    source: str = ""
    target: Backend | None = field(default=None, repr=False)

    @property
    def bos_token_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id("pad_token")

    @property
    def added_tokens(self) -> list[str]:
        """The tokens that were added to the vocabulary, and are never split, such as "<|im_end|>"."""
        listed = getattr(self.backend, "get_added_tokens_decoder", dict)()
        return [token.content for token in listed.values()]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of `text`, by default with tokens added around it, such as a beginning of sequence."""
        with guarded("the tokenizer fails", self.source or None):
            try:
                return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
            except (TypeError, UnicodeEncodeError) as error:
                raise ArgumentError(f"a text must be a str of valid Unicode, not {text!r:.80}") from error

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool = False,
        padding_side: Literal["left", "right"] = "left",
        add_special_tokens: bool = True,
        return_tensors: Literal["np"] | None = None,
    ) -> dict[str, Any]:
        """Returns "input_ids" and "attention_mask" of a text or of several, as `model(...)` and `generate` take them.

        With `padding` all rows are as long as the longest. The mask is 0 on padding, which goes to the left, where
        generation needs it. The padding token is the tokenizer's, else its end of sequence. `return_tensors="np"` gives
        int32 arrays [rows, length], also of a single text.
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        rows = [self.encode(one, add_special_tokens=add_special_tokens) for one in texts]
        if return_tensors not in (None, "np"):
            raise ArgumentError(f"return_tensors={return_tensors!r} is not implemented", hint='pass "np"')
        if padding_side not in ("left", "right"):
            raise ArgumentError(f'padding_side={padding_side!r}, expected "left" or "right"')
        longest, lengths = max(map(len, rows), default=0), {len(row) for row in rows}
        if return_tensors is not None and not padding and len(lengths) > 1:
            raise ArgumentError("texts of unequal lengths make no array", hint="pass padding=True")
        spaces = [longest - len(row) if padding else 0 for row in rows]
        ids = [_beside(row, [self._padding] * space, padding_side) for row, space in zip(rows, spaces, strict=True)]
        masks = [_beside([1] * len(row), [0] * space, padding_side) for row, space in zip(rows, spaces, strict=True)]
        found = {"input_ids": ids, "attention_mask": masks}
        if return_tensors is not None:
            return {name: np.asarray(values, np.int32) for name, values in found.items()}
        return {name: values[0] for name, values in found.items()} if single else found

    def encode_spans(self, text: str, *, add_special_tokens: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of `text`, and the [first, end) characters of `text` that each stands for.

        Whitespace that a tokenizer does not count as part of a token belongs to the token after it. Raises
        ArgumentError for tokenizers that are read by transformers and do not know these places.
        """
        with guarded("the tokenizer fails", self.source or None):
            found = self.backend.encode(text, add_special_tokens=add_special_tokens)
        if (offsets := getattr(found, "offsets", None)) is None:
            raise ArgumentError("does not tell the places of its tokens", file=self.source or None)
        spans, end = [], 0
        for first, after in offsets:
            spans.append((min(first, end), after))
            end = max(end, after)
        return found.ids, spans

    def decode(self, ids: Iterable[int] | int, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        with guarded("the tokenizer fails", self.source or None):
            try:
                numbers = [int(id) for id in (ids if isinstance(ids, Iterable) else [ids])]
                text = self.backend.decode(numbers, skip_special_tokens=skip_special_tokens)
            except OverflowError as error:
                raise ArgumentError("token ids must be from 0 to 2**32 - 1") from error
            except (TypeError, ValueError) as error:
                problem = "decode takes one row of token ids"
                raise ArgumentError(problem, hint="batch_decode takes several rows") from error
        return _without_spaces(text) if self.cleans else text

    def batch_decode(self, rows: Iterable[Iterable[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Returns the text of each row of ids, such as those of `model.generate(...).sequences`."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def stream(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> Iterator[str]:
        """Yields the text of `ids` piece by piece, as soon as later ids cannot change it; joined, it equals `decode`.

        The only exception is broken characters in byte tokens, which become another number of U+FFFD.
        """
        shown: list[int] = []  # an id's text depends on the ids before it
        waiting: list[int] = []
        start = 0
        for id in ids:
            waiting.append(id)
            text = self.decode(shown + waiting, skip_special_tokens=skip_special_tokens)
            end = self._settled(text)
            if end <= start:
                continue
            yield text[start:end]
            if self.cleans:
                start = end
            else:
                shown, waiting = waiting, []
                start = len(self.decode(shown, skip_special_tokens=skip_special_tokens))
        if rest := self.decode(shown + waiting, skip_special_tokens=skip_special_tokens)[start:]:
            yield rest

    def encode_target(self, text: str) -> list[int]:
        """Returns the ids of what an encoder-decoder shall write: labels, in the target language if it has one."""
        return self.encode(text) if self.target is None else replace(self, backend=self.target).encode(text)

    def between(self, src_lang: str | None, tgt_lang: str | None) -> Tokenizer:
        """Returns the tokenizer of texts in these languages; None leaves what it has."""
        if not isinstance(self.backend, FastTokenizer):
            return self  # one of transformers', which was told
        roles = self.special_tokens.values()
        other = {"backend": src_lang, "target": tgt_lang}
        named = {name: language for name, language in other.items() if language is not None}
        made = {name: speaking(self.backend, own, roles, self.source) for name, own in named.items()}
        return replace(self, **made)

    def language_id(self, language: str) -> int:
        """Returns the id of a language's token, such as "fra_Latn" (NLLB), "fr_XX" (mBART) or "fr" (M2M-100).

        It is the `forced_bos_token_id` of a translation to that language. ArgumentError if there is no such token.
        """
        id = self.backend.token_to_id(language_token(self.backend, language, self.source))
        assert id is not None
        return id

    @overload
    def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = ...,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        template: str | None = ...,
    ) -> list[int]: ...
    @overload
    def apply_chat_template(self, messages: Messages, **arguments: Any) -> Any: ...
    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tokenize: bool = True,
        return_dict: bool = False,
        return_tensors: str | None = None,
        **variables: Any,
    ) -> Any:
        """Ids of a chat, ready for the model: the arguments are transformers', and those of `render_chat`.

        `tokenize=False` gives the text. `return_tensors="np"` gives an int32 array [1, length], `return_dict=True` the
        keyword arguments "input_ids" and "attention_mask" of the model and its `generate`. Raises ArgumentError for
        arguments of transformers that are not implemented.
        """
        if return_tensors not in (None, "np"):
            raise ArgumentError(f"return_tensors={return_tensors!r} is not implemented", hint='pass "np"')
        text = self.render_chat(messages, **variables)
        if not tokenize:
            return text
        ids = self.encode(text, add_special_tokens=False)
        found = ids if return_tensors is None else np.asarray([ids], np.int32)
        ones = [1] * len(ids) if return_tensors is None else np.ones_like(found)
        return {"input_ids": found, "attention_mask": ones} if return_dict else found

    def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text that `apply_chat_template` turns into ids.

        `messages` are dicts such as {"role": "user", "content": "Hello"}, `tools` JSON schemas. With
        `add_generation_prompt` the assistant's answer is begun. `template` (or `chat_template`) is the name of one of
        several templates, or a template; `variables` are what it reads besides. It runs in a sandbox.
        """
        if template is not None and chat_template is not None:
            raise ArgumentError("template and chat_template are the same, but both are given")
        refused = [f"{name}={variables[name]!r}" for name in NOT_IMPLEMENTED if variables.get(name)]
        if refused:
            raise ArgumentError(f"{', '.join(refused)[:300]} is not implemented")
        variables = {name: value for name, value in variables.items() if name not in NOT_IMPLEMENTED}
        wanted = chat_template if template is None else template
        chosen = Template.choose(self.templates, wanted, self.source, tools=bool(tools))
        own = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        return render(chosen, messages, {**self.special_tokens, **own, **variables})

    @property
    def _padding(self) -> int:
        """The token to pad with: masked, so any will do."""
        known = (self.pad_token_id, self.eos_token_id)
        return next((id for id in known if id is not None), 0)

    def render_marked_chat(
        self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The text as from `render_chat`, and the [first, end) characters of it that the assistant wrote.

        The template's generation blocks say so; None if it has no such blocks.
        """
        chosen = Template.choose(self.templates, None, self.source, tools=bool(tools))
        own = {"tools": tools, "documents": None, "add_generation_prompt": False}
        given = {**self.special_tokens, **own, **variables}
        return render_marked(chosen, messages, given) if chosen.marks else (render(chosen, messages, given), None)

    def _id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        id = None if token is None else self.backend.token_to_id(token)
        return self.default_ids.get(f"{role}_id") if id is None else id

    def _settled(self, text: str) -> int:
        """Returns the length of the beginning of `text` that no further ids can change."""
        if text.endswith(REPLACEMENT):
            return 0
        if not self.cleans:
            return len(text)
        # "do n '" may become "don't": cleaning reaches back over two words.
        return text.rfind(" ", 0, max(text.rfind(" "), 0)) if text.count(" ") > 1 else 0


def _beside(row: list[int], filling: list[int], side: str) -> list[int]:
    return filling + row if side == "left" else row + filling


def _without_spaces(text: str) -> str:
    """Cleans `text` up as transformers does, in its order: "it is n't , is it ?" becomes "it isn't, is it?"."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
