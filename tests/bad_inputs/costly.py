"""Small and middling files that would cost much time or memory if they were trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bad_inputs import Bad
from bad_inputs.ggufs import spoiled as gguf
from bad_inputs.pickles import rezip, spoiled as torch_file
from bad_inputs.valid import WEIGHTS, header, payload, safetensors, write_index, write_sharded

INDEX = f"{WEIGHTS}.index.json"
LIST_OF_LISTS = b"[" + b"[]," * 4_000_000 + b"1]"
LIST_OF_DICTS = b"[" + b"{}," * 4_000_000 + b"1]"
KEYS = b"{" + b",".join(b'"%d":0' % number for number in range(1_500_000)) + b"}"


def container(name: str, text: Callable[[], bytes], *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).write_bytes(safetensors(text(), payload()))

    return Bad(f"safetensors-{name}", spoil, words, WEIGHTS)


def index(name: str, text: Callable[[], bytes], *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        write_sharded(directory)
        (directory / INDEX).write_bytes(b'{"weight_map": ' + text() + b"}")

    return Bad(f"index-{name}", spoil, words, INDEX)


def config(name: str, file: str, text: Callable[[], bytes], *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        (directory / file).write_bytes(b'{"a": ' + text() + b"}")

    return Bad(f"{file}-{name}", spoil, words, file)


def pickled(name: str, raw: Callable[[], bytes], *words: str) -> Bad:
    def change(file: Path) -> None:
        rezip(file, lambda record, content: raw() if record.endswith("data.pkl") else content)

    return torch_file(f"costly-{name}", change, *words)


def many_shards(directory: Path) -> None:
    write_sharded(directory)
    write_index(directory, {str(number): f"{number}.safetensors" for number in range(50_000)})


def tensors(count: int) -> bytes:
    end = len(payload())
    more = {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for number in range(count)}
    return json.dumps({**header(), **more}).encode()


def pairs(count: int, pair: bytes) -> Callable[[bytes], bytes]:
    """More metadata, in front of what is there."""

    def change(raw: bytes) -> bytes:
        total = int.from_bytes(raw[16:24], "little") + count
        return raw[:16] + total.to_bytes(8, "little") + pair + raw[24:]

    return change


def number_pair(number: int) -> bytes:
    return len(str(number)).to_bytes(8, "little") + str(number).encode() + bytes(4) + b"\0"


def list_pair(kind: int, count: int, size: int) -> bytes:
    head = (1).to_bytes(8, "little") + b"x" + (9).to_bytes(4, "little") + kind.to_bytes(4, "little")
    return head + count.to_bytes(8, "little") + bytes(size * count)


TENSOR = (1).to_bytes(8, "little") + b"%c" + (1).to_bytes(4, "little") + bytes(20)
DOUBLED = b"".join(b"0h%ch%c\x86q%c" % (number, number, number + 1) for number in range(200))
BAD = [
    container("header-of-lists", lambda: LIST_OF_LISTS, "objects and items"),
    container("header-of-dicts", lambda: LIST_OF_DICTS, "objects and items"),
    container("header-of-keys", lambda: KEYS, "objects and items"),
    container("header-of-tensors", lambda: tensors(200_000), "objects and items"),
    container("header-of-40-MB", lambda: b"{" + b" " * 40_000_000 + b"}", "limit"),
    index("of-lists", lambda: LIST_OF_LISTS, "objects and items"),
    index("of-keys", lambda: KEYS, "objects and items"),
    index("of-40-MB", lambda: b"{" + b" " * 40_000_000 + b"}", "larger"),
    Bad("index-of-50000-shards", many_shards, ("50000 shards",), INDEX),
    *(config("of-lists", file, lambda: LIST_OF_LISTS[-5_000_001:], "items") for file in ("config.json",)),
    *(
        config("of-dicts", file, lambda: b"[" + b"{}," * 2_000_000 + b"1]", "objects and items")
        for file in ("config.json", "generation_config.json")
    ),
    *(config("of-10-MB", file, lambda: b'"' + b"x" * 10_000_000 + b'"') for file in ("config.json",)),
    pickled("marks", lambda: b"\x80\x02" + b"(" * 30_000_000 + b".", "opcodes"),
    pickled("dicts", lambda: b"\x80\x02(" + b"}" * 30_000_000 + b"t.", "opcodes"),
    pickled("memos", lambda: b"\x80\x04N" + b"\x94" * 30_000_000 + b".", "opcodes"),
    pickled("of-60-MB", lambda: b"\x80\x02" + bytes(65_000_000), "data.pkl"),
    pickled("pairs-of-pairs", lambda: b"\x80\x02)q\0" + DOUBLED + b"."),
    pickled("pairs-of-pairs-as-key", lambda: b"\x80\x02})q\0" + DOUBLED + b"K\x01s."),
    pickled("pairs-of-pairs-as-shape", lambda: b"\x80\x02ctorch\nSize\n)q\0" + DOUBLED + b"\x85R."),
    gguf("costly-pairs", pairs(70_000, b"".join(map(number_pair, range(70_000)))), "more than"),
    gguf("costly-texts", pairs(1, list_pair(8, 3_000_000, 8)), "more than"),
    gguf("costly-numbers", pairs(1, list_pair(0, 30_000_000, 1)), "more than"),
    gguf("costly-tensors", lambda raw: raw[:8] + (10**6).to_bytes(8, "little") + bytes(8) + bytes(24 * 10**6), "more"),
]
