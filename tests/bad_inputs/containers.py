"""safetensors files and indexes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import Bad
from bad_inputs.valid import WEIGHTS, Q, header, payload, safetensors, shapes, write_index, write_sharded

INDEX = f"{WEIGHTS}.index.json"
SECOND = "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


def content(name: str, make: Callable[[], bytes], *words: str, tensor: str | None = None, file: str = WEIGHTS) -> Bad:
    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).write_bytes(make())

    return Bad(f"safetensors-{name}", spoil, words, file, tensor)


def misfit(name: str, make: Callable[[], bytes], *words: str) -> Bad:
    """A valid file that does not fit the config."""
    return content(name, make, *words, file="")


def entry(name: str, change: dict[str, Any], *words: str, tensor: str | None = Q) -> Bad:
    def make() -> bytes:
        entries = header()
        entries[Q] = entries[Q] | change
        return safetensors(entries, payload())

    return content(f"entry-{name}", make, *words, tensor=tensor)


def whole() -> bytes:
    return safetensors(header(), payload())


def text(raw: bytes) -> Callable[[], bytes]:
    return lambda: safetensors(raw, payload())


def twice() -> bytes:
    raw = json.dumps(header())
    return safetensors(f"{raw[:-1]}, {json.dumps(Q)}: {json.dumps(header()[Q])}}}".encode(), payload())


def spans(name: str, shift: tuple[int, int]) -> Bad:
    begin, end = header()[Q]["data_offsets"]
    return entry(name, {"data_offsets": [begin + shift[0], end + shift[1]]}, Q, tensor=None)


def cut(name: str, size: Callable[[bytes], int], *words: str) -> Bad:
    return content(f"cut-{name}", lambda: whole()[: size(whole())], *(words or ("truncated",)))


def start(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def sparse(name: str, length: int) -> Bad:
    def spoil(directory: Path) -> None:
        with (directory / WEIGHTS).open("wb") as handle:
            handle.write(struct.pack("<Q", length))
            handle.truncate(1 << 40)

    return Bad(f"safetensors-{name}", spoil, ("header",), WEIGHTS)


def renamed(name: str, changes: dict[str, str], *words: str) -> Bad:
    def make() -> bytes:
        return safetensors({changes.get(key, key): value for key, value in header().items()}, payload())

    return misfit(name, make, *words)


def without(*names: str) -> Callable[[], bytes]:
    kept = [name for name in shapes() if name not in names]
    return lambda: safetensors(header(kept), payload(kept))


def indexed(name: str, change: Callable[[Path, dict[str, Any]], Any], *words: str, file: str = INDEX) -> Bad:
    def spoil(directory: Path) -> None:
        weight_map = write_sharded(directory)
        changed = change(directory, weight_map)
        if changed is not None:
            write_index(directory, changed)

    return Bad(f"index-{name}", spoil, words, file)


def pointing(name: str, shard: Any) -> Bad:
    return indexed(name, lambda directory, weight_map: weight_map | {Q: shard}, "not a plain file name")


def index_text(name: str, raw: str, *words: str) -> Bad:
    def put(directory: Path, _: dict[str, Any]) -> None:
        (directory / INDEX).write_text(raw)

    return indexed(name, put, *words)


def shape(name: str, change: Any) -> Bad:
    return entry(f"shape-{name}", {"shape": change})


OTHER_SHAPE = {"shape": [12, 48]}
BAD = [
    content("empty", lambda: b"", "is empty"),
    content("one-byte", lambda: b"\x01", "truncated"),
    content("seven-bytes", lambda: b"\x01" + bytes(6), "truncated"),
    content("no-header", lambda: bytes(8), "not valid JSON"),
    content("length-past-the-end", lambda: struct.pack("<Q", 10_000) + b"{}", "bytes of its header are missing"),
    content("length-2**63", lambda: struct.pack("<Q", 1 << 63) + whole()[8:], "limit"),
    content("length-2**64-1", lambda: struct.pack("<Q", (1 << 64) - 1) + whole()[8:], "limit"),
    sparse("header-over-the-limit", 100_000_001),
    content("lfs-pointer", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs"),
    content("html", lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    content("html-lower", lambda: b"\n <html><body>504</body></html>", "HTML"),
    content("xml", lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    content("json-error", lambda: b'{"error":"Repository not found"}', "server"),
    content("gguf-inside", lambda: b"GGUF" + bytes(60), "GGUF"),
    content("zip-inside", lambda: b"PK\x03\x04" + bytes(60), "zip"),
    content("random", lambda: bytes(range(256)) * 4, "safetensors"),
    content("header-not-json", text(b"{not json}"), "not valid JSON"),
    content("header-list", text(b"[1, 2]"), "not a JSON object"),
    content("header-number", text(b"5"), "not a JSON object"),
    content("header-null", text(b"null"), "not a JSON object"),
    content("header-string", text(b'"x"'), "not a JSON object"),
    content("header-deep", text(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not valid JSON"),
    content("header-deep-list", text(b"[" * 200_000), "not valid JSON"),
    content("header-latin1", text(b'{"\xe9": 1}'), "not valid JSON"),
    content("header-lone-surrogate-bytes", text(b'{"\xed\xa0\x80": 1}'), "not valid JSON"),
    content("header-long-number", text(b'{"a": ' + b"9" * 10_000 + b"}")),
    content("header-utf16", text('{"a": 1}'.encode("utf-16")), "not valid JSON"),
    content("header-trailing-comma", text(b'{"a": 1,}'), "not valid JSON"),
    content("name-twice", twice, "twice", tensor=Q),
    content("metadata-list", lambda: safetensors({"__metadata__": [1], **header()}, payload()), "__metadata__"),
    content("metadata-number", lambda: safetensors({"__metadata__": {"a": 1}, **header()}, payload()), "__metadata__"),
    content("trailing-byte", lambda: whole() + b"\0", "1 bytes follow"),
    content("trailing-copy", lambda: whole() + payload(), "follow the last tensor"),
    cut("in-the-length", lambda raw: 5),
    cut("after-the-length", lambda raw: 8),
    cut("in-the-header", lambda raw: start(raw) // 2),
    cut("after-the-header", start),
    cut("in-the-first-tensor", lambda raw: start(raw) + 10),
    cut("in-the-middle", lambda raw: (start(raw) + len(raw)) // 2),
    cut("one-byte-short", lambda raw: len(raw) - 1, "truncated", "lm_head.weight"),
    entry("dtype-unknown", {"dtype": "F77"}, "F77"),
    entry("dtype-number", {"dtype": 5}, "dtype"),
    entry("dtype-list", {"dtype": ["F32"]}, "dtype"),
    entry("dtype-null", {"dtype": None}, "dtype"),
    entry("dtype-other-size", {"dtype": "F16"}, "takes"),
    entry("extra-key", {"extra": 1}, "exactly"),
    shape("overflow", [1 << 32, 1 << 32]),
    shape("overflow-to-zero", [1 << 62, 4, 24]),
    shape("overflow-many", [2] * 63),
    shape("dimensions", [1] * 65),
    shape("million-dimensions", [1] * 100_000),
    shape("negative", [-24, -24]),
    shape("float", [24.0, 24]),
    shape("string", ["24", 24]),
    shape("bool", [True, 576]),
    shape("null", None),
    shape("dict", {}),
    shape("number", 576),
    shape("too-small", [23, 24]),
    spans("hole", (4, 4)),
    spans("overlap", (-4, -4)),
    spans("negative", (-(1 << 40), -(1 << 40))),
    spans("past-the-end", (1 << 40, 1 << 40)),
    spans("past-int64", (1 << 70, 1 << 70)),
    spans("reversed", (2304, -2304)),
    entry("offsets-one", {"data_offsets": [0]}, "pair"),
    entry("offsets-three", {"data_offsets": [0, 1, 2]}, "pair"),
    entry("offsets-floats", {"data_offsets": [0.0, 2304.0]}, "pair"),
    entry("offsets-strings", {"data_offsets": ["0", "2304"]}, "pair"),
    entry("offsets-null", {"data_offsets": None}, "pair"),
    entry("offsets-bools", {"data_offsets": [False, True]}, "pair"),
    content("entry-number", lambda: safetensors(header() | {Q: 5}, payload()), "exactly", tensor=Q),
    content("entry-null", lambda: safetensors(header() | {Q: None}, payload()), "exactly", tensor=Q),
    content("entry-empty", lambda: safetensors(header() | {Q: {}}, payload()), "exactly", tensor=Q),
    misfit("only-metadata", lambda: safetensors({"__metadata__": {}}, b""), "0 tensors"),
    misfit("no-tensors", lambda: safetensors({}, b""), "0 tensors"),
    misfit("one-missing", without(Q), Q, "missing"),
    misfit("all-missing-listed", without(Q, NORM, "lm_head.weight"), Q, NORM, "lm_head.weight"),
    renamed("misspelled", {Q: "model.layers.0.self_attn.query.weight"}, Q, "query.weight", "no place"),
    renamed("name-empty", {Q: ""}, Q, "missing"),
    renamed("name-path", {Q: "../../etc/passwd"}, Q, "missing"),
    renamed("name-nul", {Q: "a\0b"}, "control characters"),
    renamed("name-surrogate", {Q: "\ud800"}, "Unicode"),
    renamed("name-long", {Q: "x" * 1_000_000}, "1000000 characters"),
    misfit("other-shape", lambda: safetensors(header() | {Q: header()[Q] | OTHER_SHAPE}, payload()), Q, "[24, 24]"),
    misfit(
        "integers",
        lambda: safetensors(header() | {Q: header()[Q] | {"dtype": "I32"}}, payload()),
        Q,
        "int32",
        "floating-point",
    ),
    pointing("parent", "../model.safetensors"),
    pointing("absolute", "/etc/passwd"),
    pointing("subdirectory", "sub/model.safetensors"),
    pointing("backslash", "..\\model.safetensors"),
    pointing("drive", "C:model.safetensors"),
    pointing("dot", "."),
    pointing("dots", ".."),
    pointing("empty-name", ""),
    pointing("nul", "a\0.safetensors"),
    pointing("a-number", 5),
    pointing("null", None),
    pointing("a-list", ["model-00001-of-00002.safetensors"]),
    pointing("dict", {"file": "a"}),
    pointing("url", "https://example.org/model.safetensors"),
    indexed("missing-shard", lambda directory, _: (directory / SECOND).unlink(), SECOND, "missing"),
    indexed("unknown-shard", lambda _, weight_map: weight_map | {Q: "other.safetensors"}, "other.safetensors"),
    indexed("name-too-long", lambda _, weight_map: weight_map | {Q: "a" * 5000 + ".safetensors"}),
    indexed("key-in-no-shard", lambda _, weight_map: weight_map | {"ghost": SECOND}, "ghost"),
    indexed("key-in-other-shard", lambda _, weight_map: weight_map | {Q: SECOND}, Q),
    indexed(
        "shard-is-the-config", lambda _, weight_map: weight_map | {Q: "config.json"}, "config.json", file="config.json"
    ),
    indexed("shard-is-the-index", lambda _, weight_map: weight_map | {Q: INDEX}),
    indexed(
        "shard-truncated",
        lambda directory, _: (directory / SECOND).write_bytes((directory / SECOND).read_bytes()[:-1]) and None,
        "truncated",
        file=SECOND,
    ),
    indexed("weight-map-empty", lambda *_: {}, "weight_map"),
    indexed("weight-map-list", lambda *_: [1], "weight_map"),
    indexed("weight-map-number", lambda *_: 5, "weight_map"),
    index_text("empty", "", "not valid JSON"),
    index_text("not-json", "{", "not valid JSON"),
    index_text("list", "[]", "weight_map"),
    index_text("number", "1", "weight_map"),
    index_text("deep", '{"weight_map":' * 100_000, "not valid JSON"),
]
