"""An interpreter for the part of the pickle format that torch.save writes. It cannot run code.

Python's own unpickler looks up and calls functions that the file names, and allocates as much as the file asks for.
This one knows plain values, containers and the constructors of an allow-list; every other global and opcode is refused
by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydel.errors import CheckpointError

MAX_PICKLE_BYTES = 64_000_000  # the largest real ones, of 100,000 tensors, take 20 MB
MAX_STEPS = 600_000  # takes most of a second
STEPS_PER_TENSOR = 64  # torch.save takes about 30
_MAX_TEXT = 100_000  # bytes of one string
_MAX_GLOBAL = 1000  # bytes of the module or name of a global

_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}  # NONE NEWTRUE NEWFALSE
_EMPTY: dict[int, Callable[[], Any]] = {0x5D: list, 0x7D: dict, 0x29: tuple}  # EMPTY_LIST EMPTY_DICT EMPTY_TUPLE
_NUMBERS = {0x4B: "<B", 0x4D: "<H", 0x4A: "<i", 0x47: ">d"}  # BININT1 BININT2 BININT BINFLOAT
_TEXTS = {0x58: "<I", 0x8C: "<B", 0x8D: "<Q", 0x55: "<B", 0x54: "<i"}  # BINUNICODE, SHORT_, 8; SHORT_BINSTRING, BIN
_BYTES = {0x43: "<B", 0x42: "<I", 0x8E: "<Q"}  # SHORT_BINBYTES BINBYTES BINBYTES8
_PUT = {0x71: "<B", 0x72: "<I"}  # BINPUT LONG_BINPUT
_GET = {0x68: "<B", 0x6A: "<I"}  # BINGET LONG_BINGET
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}  # TUPLE1 TUPLE2 TUPLE3
_PROTO, _FRAME, _STOP = 0x80, 0x95, 0x2E


@dataclass(frozen=True)
class Constructor:
    """A function that a REDUCE may call: `build` gets the arguments from the file and must check them."""

    name: str
    build: Callable[..., Any]


def unpickle(
    data: memoryview,
    file: Path,
    allowed: Mapping[str, object],
    persistent: Callable[[object], object],
    max_steps: int = MAX_STEPS,
) -> tuple[Any, int]:
    """Returns the object whose pickle starts `data`, and the number of bytes that it took.

    A global "module.name" becomes `allowed["module.name"]`; a persistent id becomes `persistent(id)`. Each opcode is a
    step, and makes an object of at most some hundred bytes in addition to its copies from the file.
    """
    machine = _Machine(data[:MAX_PICKLE_BYTES], allowed, persistent, max_steps)
    try:
        return machine.run(), machine.position
    except CheckpointError as error:
        raise CheckpointError(error.problem, file=file, hint=error.hint) from None
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        where = f"at byte {machine.position} of its pickle"
        raise CheckpointError(f"is damaged {where} ({type(error).__name__}: {error})", file=file) from error


class _Machine:
    def __init__(
        self, data: memoryview, allowed: Mapping[str, object], persistent: Callable[[object], object], max_steps: int
    ):
        self.data, self.allowed, self.persistent, self.max_steps = data, allowed, persistent, max_steps
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[int, Callable[[], None]] = {
            0x28: lambda: self.marks.append(len(self.stack)),  # MARK
            0x94: lambda: self.memo.__setitem__(len(self.memo), self.stack[-1]),  # MEMOIZE
            0x8A: self.long,  # LONG1
            0x74: lambda: self.stack.append(tuple(self.to_mark())),  # TUPLE
            0x63: lambda: self.find(self.line(), self.line()),  # GLOBAL
            0x93: self.stack_global,
            0x51: lambda: self.stack.append(self.persistent(self.stack.pop())),  # BINPERSID
            0x52: self.reduce,
            0x62: self.build,
            0x61: lambda: self.extend([self.stack.pop()]),  # APPEND
            0x65: lambda: self.extend(self.to_mark()),  # APPENDS
            0x73: lambda: self.set_items([self.stack.pop(-2), self.stack.pop()]),  # SETITEM
            0x75: lambda: self.set_items(self.to_mark()),  # SETITEMS
        }

    def run(self) -> Any:
        for _ in range(self.max_steps):
            if (opcode := self.take(1)[0]) == _STOP:
                break
            self.step(opcode)
        else:
            raise ValueError(f"it has more than {self.max_steps} opcodes")
        value = self.stack.pop()
        if self.stack:
            raise ValueError("values are left over")
        return value

    def step(self, opcode: int) -> None:
        stack = self.stack
        if opcode in _GET:
            stack.append(self.memo[self.number(_GET[opcode])])
        elif opcode in _PUT:
            self.memo[self.number(_PUT[opcode])] = stack[-1]
        elif opcode in _NUMBERS:
            stack.append(self.number(_NUMBERS[opcode]))
        elif opcode in _TEXTS:
            stack.append(str(self.take(self.number(_TEXTS[opcode]), _MAX_TEXT), "utf-8"))
        elif opcode in _TUPLES:
            size = _TUPLES[opcode]
            items = [stack.pop() for _ in range(size)]
            stack.append(tuple(reversed(items)))
        elif opcode in self.actions:
            self.actions[opcode]()
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _BYTES:
            stack.append(bytes(self.take(self.number(_BYTES[opcode]), _MAX_TEXT)))
        elif opcode in (_PROTO, _FRAME):
            self.take(1 if opcode == _PROTO else 8)
        else:
            raise CheckpointError(f"its pickle uses opcode {opcode:#04x}, which no state dict needs")

    def take(self, count: int, limit: int = MAX_PICKLE_BYTES) -> memoryview:
        if not 0 <= count <= limit:
            raise ValueError(f"a value of {count} bytes")
        end = self.position + count
        if end > len(self.data):
            raise ValueError(f"the pickle ends, or exceeds {MAX_PICKLE_BYTES} bytes")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def line(self) -> str:
        text = bytes(self.data[self.position : self.position + _MAX_GLOBAL])
        return str(self.take(text.index(b"\n") + 1)[:-1], "utf-8")

    def to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def find(self, module: str, name: str) -> None:
        key = f"{module}.{name}"
        if key not in self.allowed:
            raise CheckpointError(
                f"its pickle refers to {key[:200]!r}, which is not on the list of names that a state dict needs; "
                "nothing of it was executed",
                hint="save the state dict alone, best as safetensors",
            )
        self.stack.append(self.allowed[key])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("the name of a global is not a string")
        self.find(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Constructor) or type(arguments) is not tuple:
            raise TypeError("a call of something that is no constructor")
        self.stack.append(function.build(*arguments))

    def build(self) -> None:
        """Skips the attributes of an OrderedDict, in which torch keeps `_metadata`: they are not needed."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not dict or type(state) is not dict:
            raise TypeError("attributes of something that is no dict")

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("items for something that is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)


def set_item(target: dict[Any, Any], key: object, value: object) -> None:
    if type(key) not in (str, int):  # hashing nested tuples can take exponential time
        raise TypeError(f"a dict key of type {type(key).__name__}")
    target[key] = value
