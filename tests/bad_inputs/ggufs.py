"""GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from bad_inputs import Bad
from bad_inputs.valid import GGUF, write_gguf

HEAD = 24  # magic, version, two counts


def spoiled(name: str, change: Callable[[bytes], bytes], *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        file = write_gguf(directory)
        file.write_bytes(change(file.read_bytes()))

    return Bad(f"gguf-{name}", spoil, words, GGUF)


def put(name: str, at: int, form: str, value: int, *words: str) -> Bad:
    def change(raw: bytes) -> bytes:
        packed = struct.pack(form, value)
        return raw[:at] + packed + raw[at + len(packed) :]

    return spoiled(name, change, *words)


def after(name: str, key: bytes, skip: int, value: bytes, *words: str) -> Bad:
    """`value` written `skip` bytes after the end of `key`, wherever that is."""

    def change(raw: bytes) -> bytes:
        at = raw.index(key) + len(key) + skip
        return raw[:at] + value + raw[at + len(value) :]

    return spoiled(name, change, *words)


def number(key: str, value: int, *words: str) -> Bad:
    return after(f"{key}={value}", f"llama.{key}".encode(), 4, struct.pack("<I", value), *words)


TENSOR = b"blk.0.attn_q.weight"
BAD = [
    spoiled("empty", lambda raw: b"", "is empty"),
    *(
        spoiled(f"cut-at-{size}", lambda raw, size=size: raw[:size])
        for size in (3, 4, 7, 8, 20, 24, 30, 100, 500, 1000)
    ),
    spoiled("one-byte-short", lambda raw: raw[:-40], "truncated"),
    spoiled("magic", lambda raw: b"GGML" + raw[4:], "not a GGUF file"),
    spoiled("lfs-pointer", lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
    spoiled("html", lambda raw: b"<!doctype html><title>404</title>", "HTML"),
    put("version-0", 4, "<I", 0),
    put("version-1", 4, "<I", 1, "version 1"),
    put("version-99", 4, "<I", 99, "version 99"),
    put("big-endian", 4, ">I", 3, "big-endian"),
    *(put(f"tensors-2**{bits}", 8, "<Q", 1 << bits, "cannot fit") for bits in (32, 60, 63)),
    *(put(f"pairs-2**{bits}", 16, "<Q", 1 << bits, "cannot fit") for bits in (32, 60, 63)),
    put("no-pairs", 16, "<Q", 0),
    put("pairs-one-more", 16, "<Q", 30),
    put("key-2**60-long", HEAD, "<Q", 1 << 60, "truncated"),
    put("key-not-utf8", HEAD + 8, "<H", 0xFFFF, "UTF-8"),
    after("value-type-unknown", b"llama.block_count", 0, struct.pack("<I", 99), "unknown type"),
    after("value-list-of-2**60", b"llama.block_count", 0, struct.pack("<IIQ", 9, 4, 1 << 60), "cannot fit"),
    after("value-list-of-lists", b"llama.block_count", 0, struct.pack("<IIQ", 9, 9, 1), "list of lists"),
    after("value-text-of-2**60", b"llama.block_count", 0, struct.pack("<IQ", 8, 1 << 60), "truncated"),
    after("dimensions-2**31", TENSOR, 0, struct.pack("<I", 1 << 31), "dimensions"),
    after("dimensions-5", TENSOR, 0, struct.pack("<I", 5), "dimensions"),
    after("shape-overflow", TENSOR, 4, struct.pack("<QQ", 1 << 40, 1 << 40), "overflows"),
    after("shape-past-the-end", TENSOR, 4, struct.pack("<QQ", 1 << 20, 1 << 20), "truncated"),
    after("type-unknown", TENSOR, 20, struct.pack("<I", 9999), "9999"),
    after("type-quantized-rows", TENSOR, 20, struct.pack("<I", 12), "whole Q4_K blocks"),
    after("offset-past-the-end", TENSOR, 24, struct.pack("<Q", 1 << 50), "truncated"),
    after("offset-unaligned", TENSOR, 24, struct.pack("<Q", 33), "alignment"),
    after("offset-overlap", TENSOR, 24, struct.pack("<Q", 0), "overlaps"),
    spoiled("name-twice", lambda raw: raw.replace(b"blk.0.attn_q.w", b"blk.1.attn_q.w"), "twice"),
    spoiled("architecture-unknown", lambda raw: raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxxma")),
    number("block_count", 10_000_000),
    number("block_count", 0, "block_count"),
    number("embedding_length", 0, "embedding_length"),
    number("attention.head_count", 0, "head_count"),
    number("attention.head_count", 1 << 31),
    number("embedding_length", 1_000_000_000),
]
