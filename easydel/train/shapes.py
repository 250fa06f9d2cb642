"""The shapes that examples come in: those of TRL, axolotl, ShareGPT and Alpaca, plain text, and token ids.

`parsed` turns a record into one of five things to train on, by the keys that it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from easydel.errors import ArgumentError

Messages = list[dict[str, Any]]
# Names of roles in ShareGPT's "from", and what chat templates call them.
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "ipython"), "tool"),
    "system": "system",
    "developer": "developer",
}
PREFERENCES = ("chosen", "rejected")


@dataclass(frozen=True)
class Text:
    """Text to learn from beginning to end."""

    text: str


@dataclass(frozen=True)
class Completion:
    """A text to learn, after one that is only read."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Pair:
    """What an encoder reads, and what the decoder behind it learns to write."""

    input: str
    target: str


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them. The assistant's from number `first` on are learned, if they count.

    `variables` are what the template reads besides.
    """

    messages: Messages
    tools: list[Any] | None = None
    first: int = 0
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learned(self) -> list[int]:
        """The numbers of the messages to learn."""
        return [
            number
            for number, message in enumerate(self.messages)
            if number >= self.first and message["role"] == "assistant" and _counts(message)
        ]

    @property
    def answers(self) -> list[int]:
        """The numbers of the assistant's messages, learned or not."""
        return [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]


@dataclass(frozen=True)
class Tokens:
    """Token ids, and the label of each: itself, or -100 where nothing is learned."""

    input_ids: np.ndarray
    labels: np.ndarray


Shape = Text | Completion | Pair | Conversation | Tokens


def parsed(found: Any) -> Shape:
    """Returns the example in a record, a text, or a sequence of token ids. Raises ArgumentError with what is wrong."""
    if isinstance(found, str):
        return Text(found)
    if not isinstance(found, Mapping):
        return _tokens({"input_ids": found})
    keys = {key for key, value in found.items() if value is not None}
    for wanted, read in SHAPES.items():
        if keys >= set(wanted.split()):
            return read(found)
    if keys & set(PREFERENCES):
        raise ArgumentError("holds preferences, and there is no training on those", hint="keep the chosen answers")
    expected = ", or ".join(" and ".join(f'"{key}"' for key in wanted.split()) for wanted in SHAPES)
    raise ArgumentError(f"has {', '.join(sorted(map(str, keys))) or 'nothing'}; expected {expected}")


def _messages(found: Mapping[str, Any]) -> Conversation:
    return _conversation(found, _chat(found["messages"], "messages"))


def _share_gpt(found: Mapping[str, Any]) -> Conversation:
    messages = _chat(found["conversations"], "conversations")
    if isinstance(system := found.get("system"), str) and system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return _conversation(found, messages)


def _completion(found: Mapping[str, Any]) -> Shape:
    prompt, completion = found["prompt"], found["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt, completion)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _chat(prompt, "prompt")
    after = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else _chat(completion, "completion")
    )
    return _conversation(found, [*before, *after], first=len(before))


def _alpaca(found: Mapping[str, Any]) -> Conversation:
    parts = [_string(found, name) for name in ("instruction", "input") if found.get(name)]
    system = [{"role": "system", "content": _string(found, "system")}] if found.get("system") else []
    answer = {"role": "assistant", "content": _string(found, "output")}
    return _conversation(found, [*system, {"role": "user", "content": "\n\n".join(parts)}, answer])


def _pair(found: Mapping[str, Any]) -> Pair:
    return Pair(_string(found, "input"), _string(found, "target"))


def _text(found: Mapping[str, Any]) -> Text:
    return Text(_string(found, "text"))


def _tokens(found: Mapping[str, Any]) -> Tokens:
    ids = _integers(found["input_ids"], "input_ids")
    labels = ids if found.get("labels") is None else _integers(found["labels"], "labels")
    mask = np.ones_like(ids) if found.get("attention_mask") is None else _integers(found["attention_mask"], "mask")
    if not len(ids) == len(labels) == len(mask):
        raise ArgumentError(f"has {len(ids)} input_ids, {len(labels)} labels, and an attention_mask of {len(mask)}")
    return Tokens(ids[mask != 0], labels[mask != 0])


# In the order in which they are looked for: the keys, and what reads them.
SHAPES: dict[str, Callable[[Mapping[str, Any]], Shape]] = {
    "messages": _messages,
    "conversations": _share_gpt,
    "prompt completion": _completion,
    "instruction output": _alpaca,
    "input target": _pair,
    "input_ids": _tokens,
    "text": _text,
}


def _conversation(found: Mapping[str, Any], messages: Messages, first: int = 0) -> Conversation:
    tools = _listed(found["tools"], "tools") if found.get("tools") else None
    conversation = Conversation(messages, tools or None, first, found.get("chat_template_kwargs") or {})
    if not conversation.learned:
        raise ArgumentError("has no message of the assistant's to learn")
    return conversation


def _chat(value: Any, key: str) -> Messages:
    listed = _listed(value, key)
    messages = [_message(message, f"{key}[{number}]") for number, message in enumerate(listed)]
    if not messages:
        raise ArgumentError(f"{key} is empty")
    return messages


def _message(message: Any, where: str) -> dict[str, Any]:
    """Returns a message with "role" and "content", from one that has these or ShareGPT's "from" and "value"."""
    if not isinstance(message, Mapping):
        raise ArgumentError(f"{where} is {message!r:.60}, expected a message with a role and a content")
    given = {str(key): value for key, value in message.items() if value is not None}
    role = given.pop("role", None) or given.pop("from", None)
    given.pop("from", None)
    if "value" in given and "content" not in given:
        given["content"] = given.pop("value")
    if not isinstance(role, str) or role not in ROLES:
        raise ArgumentError(f"{where} has the role {role!r:.60}; there are {', '.join(ROLES)}")
    if "content" not in given and "tool_calls" not in given:
        raise ArgumentError(f"{where} has no content")
    return {"role": ROLES[role], **given}


def _counts(message: Mapping[str, Any]) -> bool:
    """Whether a message is learned: OpenAI's files say no by "weight": 0, axolotl's by "train": false."""
    return message.get("weight", 1) != 0 and message.get("train", True) is not False


def _listed(value: Any, key: str) -> list[Any]:
    """Returns a list that may stand as JSON in a string, since tables have no lists."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ArgumentError(f"{key} is {value!r:.60}, which is no JSON list") from None
    if isinstance(value, Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise ArgumentError(f"{key} is {value!r:.60}, expected a list")
    return list(value)


def _string(found: Mapping[str, Any], key: str) -> str:
    if not isinstance(found[key], str):
        raise ArgumentError(f"{key} is {found[key]!r:.60}, expected a text")
    return found[key]


def _integers(value: Any, key: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer) and array.dtype != bool):
        what = f"shape {array.shape}" if array.ndim > 1 else f"{value!r:.60}"
        raise ArgumentError(f"{key} is {what}, expected the whole numbers of one example")
    return array.astype(np.int32)
