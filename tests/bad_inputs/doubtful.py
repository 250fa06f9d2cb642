"""Files that two readers understand differently, and that would be loaded wrong without an error."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bad_inputs import Bad
from bad_inputs.configs import keys, text
from bad_inputs.containers import INDEX, NORM, content, indexed, misfit, whole
from bad_inputs.ggufs import TENSOR, after, spoiled as gguf
from bad_inputs.pickles import spoiled as torch_file
from bad_inputs.places import instead, manifest
from bad_inputs.valid import CONFIG, PICKLE, WEIGHTS, Q, header, payload, safetensors, shapes, tensors, write_torch

LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
JSON = json.dumps(header())


def retyped(dtype: str, size: int, *names: str) -> Callable[[], bytes]:
    """A sound file, whose tensors of those names hold zeros of another type."""

    def make() -> bytes:
        entries: dict[str, Any] = {}
        raw = b""
        for name, array in tensors().items():
            part = bytes(size * array.size) if name in names else array.tobytes()
            kind = dtype if name in names else "F32"
            entries[name] = {
                "dtype": kind,
                "shape": list(array.shape),
                "data_offsets": [len(raw), len(raw) + len(part)],
            }
            raw += part
        return safetensors(entries, raw)

    return make


def other_type(dtype: str, size: int) -> list[Bad]:
    shown = "floating-point numbers"
    one = content(f"one-tensor-of-{dtype}", retyped(dtype, size, Q), Q, shown, tensor=Q)
    return [one, content(f"all-tensors-of-{dtype}", retyped(dtype, size, *shapes()), NORM, shown)]


def poked(name: str, signature: bytes, offset: int, value: bytes, *words: str) -> Bad:
    """`value` written into the header that begins with `signature` and belongs to the record data/0."""

    def change(file: Path) -> None:
        raw = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            number = next(at for at, info in enumerate(archive.infolist()) if info.filename.endswith("data/0"))
        at = -1
        for _ in range(number + 1):
            at = raw.index(signature, at + 1)
        raw[at + offset : at + offset + len(value)] = value
        file.write_bytes(raw)

    return torch_file(f"zip-{name}", change, *words)


def around(name: str, before: bytes, behind: bytes, *, zipped: bool = True) -> Bad:
    kind = "zip" if zipped else "legacy"
    return torch_file(
        f"{kind}-{name}", lambda file: file.write_bytes(before + file.read_bytes() + behind), zipped=zipped
    )


def records(name: str, change: Callable[[str], str], *words: str) -> Bad:
    """The archive written anew with other names."""

    def rename(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            found = {info.filename: archive.read(info) for info in archive.infolist()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for record, raw in found.items():
                archive.writestr(change(record), raw)
        file.write_bytes(out.getvalue())

    return torch_file(f"zip-{name}", rename, *words)


def state(name: str, change: dict[str, Any], *words: str, tensor: str | None = Q) -> Bad:
    def spoil(directory: Path) -> None:
        write_torch(directory)
        found = {key: torch.from_numpy(array) for key, array in tensors().items()} | change
        torch.save({key: value for key, value in found.items() if value is not ...}, directory / PICKLE)

    return Bad(f"torch-{name}", spoil, words, PICKLE, tensor)


def twice_in_index(directory: Path, weight_map: dict[str, Any]) -> None:
    raw = json.dumps(weight_map)
    (directory / INDEX).write_text(f'{{"weight_map": {{"{Q}": "gone.safetensors", {raw[1:]}}}')


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
        listener.bind(path.name)
        os.chdir(here)


def generation(name: str, put: Callable[[Path], object], *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        put(directory / "generation_config.json")

    return Bad(f"generation-config-{name}", spoil, words, "generation_config.json")


BAD = [
    *(
        bad
        for dtype, size in (("I8", 1), ("U8", 1), ("I64", 8), ("BOOL", 1), ("C64", 8))
        for bad in other_type(dtype, size)
    ),
    content("leading-space", lambda: safetensors(b" " + JSON.encode(), payload()), "begin with {"),
    content("byte-order-mark", lambda: safetensors(b"\xef\xbb\xbf" + JSON.encode(), payload()), "JSON"),
    content("two-headers", lambda: safetensors(JSON.encode() + JSON.encode(), payload()), "JSON"),
    content(
        "key-twice-in-entry",
        lambda: safetensors(JSON.replace('{"dtype"', '{"dtype": "F16", "dtype"', 1).encode(), payload()),
        "twice",
        tensor=next(iter(shapes())),
    ),
    content(
        "metadata-twice", lambda: safetensors(b'{"__metadata__":{},"__metadata__":{},' + JSON[1:].encode(), payload())
    ),
    content(
        "metadata-surrogate", lambda: safetensors(b'{"__metadata__":{"a":"\\ud800"},' + JSON[1:].encode(), payload())
    ),
    content("offset-nan", lambda: safetensors(JSON.replace("[0,", "[NaN,", 1).encode(), payload()), "pair"),
    content("offset-float", lambda: safetensors(JSON.replace("[0,", "[0e0,", 1).encode(), payload()), "pair"),
    misfit("escape-in-name", lambda: whole().replace(b"model.norm.weight", b"model.n\\u001bm.wt"), "control"),
    misfit(
        "case-in-name", lambda: whole().replace(b"model.norm.weight", b"Model.Norm.Weight"), "Model.Norm", "missing"
    ),
    indexed("key-twice", twice_in_index, "twice"),
    indexed("shard-in-capitals", lambda _, weight_map: weight_map | {"x": "MODEL-00001-OF-00002.SAFETENSORS"}),
    indexed("percent", lambda _, weight_map: weight_map | {Q: "%2e%2e/model.safetensors"}, "plain file name"),
    indexed("tilde", lambda _, weight_map: weight_map | {Q: "~/model.safetensors"}, "plain file name"),
    indexed("float", lambda _, weight_map: weight_map | {Q: 1.5}, "plain file name"),
    indexed(
        "latin1", lambda directory, _: (directory / INDEX).write_bytes(b'{"weight_map":{"\xe9":"a"}}') and None, "JSON"
    ),
    poked("offset-of-another", CENTRAL, 42, bytes(4), "overlaps"),
    poked("offset-past-the-end", CENTRAL, 42, b"\xff\xff\xff\x7f"),
    poked("size-past-the-end", CENTRAL, 20, b"\xff\xff\xff\x7f" * 2, "truncated"),
    poked("size-zero", CENTRAL, 20, bytes(8)),
    poked("checksum-of-the-directory", CENTRAL, 16, b"abcd"),
    poked("checksum-of-the-header", LOCAL, 14, b"abcd", "directory"),
    poked("encrypted-in-the-header", LOCAL, 6, b"\1\0", "directory"),
    poked("deflated-in-the-header", LOCAL, 8, b"\x08\0", "directory"),
    poked("size-in-the-header", LOCAL, 18, b"\x10\0\0\0\x10\0\0\0", "directory"),
    poked("name-in-the-header", LOCAL, 30, b"X", "directory"),
    poked("padding-in-the-header", LOCAL, 28, b"\1\0"),
    poked("other-disk", CENTRAL, 34, b"\1\0", "disk"),
    around("bytes-before", b"junk", b""),
    around("bytes-behind", b"", b"junk" * 50_000),
    around("bytes-behind", b"", b"junk", zipped=False),
    around("megabyte-before", bytes(1 << 20), b""),
    torch_file("zip-another-behind", lambda file: file.write_bytes(file.read_bytes() * 2), "before it"),
    records("names-with-dots", lambda name: f"../../{name}", "leads out"),
    records("absolute-names", lambda name: f"/etc/{name}", "leads out"),
    state("integers", {Q: torch.zeros(24, 24, dtype=torch.int32)}, "floating-point"),
    state("bytes", {Q: torch.zeros(24, 24, dtype=torch.int8)}, "int8", "floating-point"),
    state("other-shape", {Q: torch.zeros(24, 23)}, "[24, 23]"),
    state("missing", {Q: ...}, "missing"),
    state("extra", {"extra": torch.zeros(2)}, "no place", tensor="extra"),
    state("none", {Q: None}, "missing"),
    state("array", {Q: np.zeros((24, 24))}, "numpy", tensor=None),
    state("sparse", {Q: torch.zeros(24, 24).to_sparse()}, "sparse", tensor=None),
    gguf("trailing", lambda raw: raw + b"junk" * 100, "follow the last tensor"),
    gguf("trailing-byte", lambda raw: raw + b"\0", "follow the last tensor"),
    after("float16", TENSOR, 20, struct.pack("<I", 1), "hole"),
    after("no-dimensions", TENSOR, 0, struct.pack("<I", 0)),
    gguf("name-not-utf8", lambda raw: raw.replace(TENSOR, b"\xff\xfe" + TENSOR[2:]), "UTF-8"),
    gguf("name-unknown", lambda raw: raw.replace(TENSOR, b"blk.0.attn_z.weight"), "attn_z"),
    gguf("crlf", lambda raw: raw.replace(b"\n", b"\r\n")),
    text("twice-and-different", f'{{"hidden_size": 99, {json.dumps(CONFIG)[1:]}', "twice", "hidden_size"),
    text("utf16", json.dumps(CONFIG).encode("utf-16"), "JSON"),
    text("byte-order-mark", b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(), "JSON"),
    keys(
        "llama3-inverted-range",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 8.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "low_freq_factor",
    ),
    keys("switch-as-text", {"is_encoder_decoder": "false"}, "is_encoder_decoder"),
    keys("kv-heads-by-layer", {"num_key_value_heads": [1, 2]}, "num_key_value_heads"),
    keys("endless-positions", {"max_position_embeddings": 10**30}, "max_position_embeddings"),
    keys("half-a-character", {"model_type": "\ud800"}, "model_type"),
    *(instead("socket", file, bind, "not a regular file") for file in (WEIGHTS, "config.json")),
    generation("pipe", os.mkfifo, "not a regular file"),
    generation("directory", Path.mkdir, "not a regular file"),
    generation("empty", Path.touch, "JSON"),
    generation("html", lambda file: file.write_text("<html>"), "JSON"),
    generation("list", lambda file: file.write_text("[]"), "object"),
    generation("huge", lambda file: (file.touch(), os.truncate(file, 1 << 40)), "too large"),
    manifest("int8-of-a-norm", '{"format": 1, "int8": ["model/norm/scale"]}', "model/norm/scale"),
    manifest("int8-of-nothing", '{"format": 1, "int8": ["nothing/here"]}', "nothing/here"),
    Bad("name-too-long", lambda directory: directory / ("x" * 300), ("so long",)),
    Bad("name-with-nul", lambda directory: Path(f"{directory}\0x"), ("no such file",)),
]
