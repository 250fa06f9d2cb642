"""From conversations to tokens and labels: the chat template writes the text, and only the assistant's part is learned.

A template with generation blocks says what the assistant writes. For any other, an answer is what the conversation with
it has beyond the conversation before it. Where a template rewrites earlier answers (drops their thoughts, for
instance), each of those becomes an example of its own, as the model meets it when it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.errors import ArgumentError
from easydel.tokenizer import Tokenizer
from easydel.train.shapes import Completion, Conversation, Tokens
from easydel.train.summed import IGNORED

Span = tuple[int, int]  # [first, end) characters


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, and the parts of it that are learned."""

    text: str
    learned: list[Span]


def chat_tokens(conversation: Conversation, tokenizer: Tokenizer) -> list[Tokens]:
    """Returns the tokens of a conversation, mostly in one piece. Raises ArgumentError if answers cannot be told."""
    return [_tokens(rendered, tokenizer) for rendered in rendered_chats(conversation, tokenizer)]


def completion_tokens(example: Completion, tokenizer: Tokenizer) -> Tokens:
    """Returns the tokens of both texts, as the tokenizer reads them together, with its end of sequence after them."""
    text = example.prompt + example.completion
    ids, spans = tokenizer.encode_spans(text, add_special_tokens=True)
    # what the tokenizer adds around a text stands for no characters, and all of it before the completion is read
    labels = [id if end > len(example.prompt) else IGNORED for id, (_, end) in zip(ids, spans, strict=True)]
    end = tokenizer.eos_token_id
    if end is not None:
        ids, labels = (ids, [*labels[:-1], end]) if ids[-1:] == [end] else ([*ids, end], [*labels, end])
    return Tokens(np.asarray(ids, np.int32), np.asarray(labels, np.int32))


def rendered_chats(conversation: Conversation, tokenizer: Tokenizer) -> list[Rendered]:
    """Returns the text or texts of a conversation with what is learned of them."""
    marked = _by_blocks(conversation, tokenizer)
    return _by_difference(conversation, tokenizer) if marked is None else [marked]


def _by_blocks(conversation: Conversation, tokenizer: Tokenizer) -> Rendered | None:
    """Returns what generation blocks say; None if there are none, or they do not stand for one answer each."""
    text, spans = tokenizer.render_marked_chat(
        conversation.messages, tools=conversation.tools, **conversation.variables
    )
    if spans is None:
        return None
    if conversation.learned == conversation.answers:
        learned = spans
    elif len(spans) == len(conversation.answers):
        by_number = dict(zip(conversation.answers, spans, strict=True))
        learned = [by_number[number] for number in conversation.learned]
    else:
        return None
    if not learned:
        raise ArgumentError("the chat template's generation blocks are empty for this conversation")
    return Rendered(text, learned)


def _by_difference(conversation: Conversation, tokenizer: Tokenizer) -> list[Rendered]:
    whole = _render(conversation, len(conversation.messages), tokenizer)
    together, alone = Rendered(whole, []), []
    for number in conversation.learned:
        text = _render(conversation, number + 1, tokenizer)
        span = (_beginning(conversation, number, text, tokenizer), _end(text, tokenizer))
        if span[0] >= span[1]:
            raise ArgumentError(f"the chat template writes nothing for message {number}")
        if whole.startswith(text):
            together.learned.append(span)
        else:
            alone.append(Rendered(text, [span]))
    return [*alone, together] if together.learned else alone


def _render(conversation: Conversation, count: int, tokenizer: Tokenizer, *, prompt: bool = False) -> str:
    """Returns the text of the first `count` messages."""
    variables: dict[str, Any] = {**conversation.variables, "add_generation_prompt": prompt}
    return tokenizer.render_chat(conversation.messages[:count], tools=conversation.tools, **variables)


def _beginning(conversation: Conversation, number: int, text: str, tokenizer: Tokenizer) -> int:
    """Returns the place in `text` where the answer `number`, which is its last message, begins."""
    if number == 0:
        raise ArgumentError("begins with the assistant's message", hint="put what it answers before it")
    prompt = _render(conversation, number, tokenizer, prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    # A prompt may begin more than the answer has: "<think>". What both begin with is read, the rest is learned.
    before = _render(conversation, number, tokenizer)
    if not (text.startswith(before) and prompt.startswith(before)):
        raise ArgumentError(
            f"the chat template writes what comes before message {number} in another way once that is there: "
            "what is the assistant's cannot be told",
            hint="use a template with {% generation %} blocks",
        )
    return next(place for place in range(len(prompt) + 1) if prompt[: place + 1] != text[: place + 1])


def _end(text: str, tokenizer: Tokenizer) -> int:
    """Returns the place where the last answer of `text` ends: whitespace after its end token is never generated."""
    short = text.rstrip()
    return len(short) if short.endswith(tuple(tokenizer.added_tokens)) else len(text)


def _tokens(rendered: Rendered, tokenizer: Tokenizer) -> Tokens:
    ids, places = tokenizer.encode_spans(rendered.text)
    first, end = np.asarray(places, np.int64).reshape(-1, 2).T
    learned = np.zeros(len(ids), bool)
    for begin, stop in rendered.learned:
        learned |= (end > begin) & (first < stop)
    tokens = np.asarray(ids, np.int32)
    return Tokens(tokens, np.where(learned, tokens, IGNORED).astype(np.int32))
