"""Streaming: parameters from a Hub by ranges equal downloaded ones, every byte once, over a network that fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SIZES, Case
from cases.gpt_oss import CASES as GPT_OSS
from hub_server import Fault, Hub, Repo, git_id, serving, sha256
from parity import make_reference
from safetensors.numpy import load_file, save_file

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, CheckpointError, HubError
from easydel.checkpoint.open import open_remote
from easydel.hub import hashed, stream
from easydel.hub.hashed import RangeHash
from easydel.hub.streamed import RemoteFile
from easydel.hub.verify import Digest
from easydel.tree import flatten
from easydel.weights import fill as filling
from easydel.weights.execute import execute
from easydel.weights.expressions import Expression, Rows, Source, Stack, Transpose
from easydel.weights.plan import Plan

LLAMA = Case("llama-stream", "llama", SIZES | {"num_hidden_layers": 2})
GPT2 = Case("gpt2-stream", "gpt2", {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4})
TP = {"auto_shard_params": True, "sharding_axis_dims": (1, 4, 2, 1)}
COMPARED = "sha256 as the Hub states"
FSDP = {"auto_shard_params": True, "sharding_axis_dims": (1, 8, 1, 1)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture(scope="module", params=[LLAMA, GPT2], ids=lambda case: case.model_type)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param.model_type)
    make_reference(request.param, path)
    return path


def upload(hub: Hub, directory: Path, **options: Any) -> None:
    hub.repos["org/model"] = Repo({file.name: file.read_bytes() for file in directory.iterdir()}, **options)


def streamed(**arguments: Any) -> dict[str, jax.Array]:
    return flatten(AutoEasyDeLModelForCausalLM.from_pretrained("org/model", stream=True, **arguments)[1])


def ranges(hub: Hub) -> list[tuple[int, int]]:
    """The ranges of weights asked for, headers aside: (start, stop)."""
    content = hub.repos["org/model"].files["model.safetensors"]
    header = 8 + int.from_bytes(content[:8], "little")
    asked = [request.range for request in hub.requests if request.method == "GET" and request.storage]
    pairs = [tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in asked if text]
    return sorted((first, last + 1) for first, last in pairs if first >= header)


def weight_bytes(hub: Hub) -> int:
    content = hub.repos["org/model"].files["model.safetensors"]
    return len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"param_dtype": jnp.bfloat16}, {"scan_layers": True}, TP, FSDP, TP | {"load_in_8bit": True}],
    ids=["plain", "cast", "scan", "tp", "fsdp", "int8"],
)
def test_streamed_parameters_equal_local_ones_and_every_byte_comes_once(
    hub: Hub, directory: Path, arguments: dict[str, Any]
):
    upload(hub, directory)
    expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)[1])
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained("org/model", stream=True, **arguments)
    found = flatten(params)
    assert found.keys() == expected.keys()
    compared = "not compared: parts of it were received more than once" if "gpt2" in directory.name else COMPARED
    assert model.load_report.hashes == {"org/model/model.safetensors": compared}
    for path, leaf in expected.items():
        assert found[path].sharding == leaf.sharding
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    asked = ranges(hub)
    if "load_in_8bit" in arguments and directory.name.startswith("gpt2"):
        return  # rows of its parameters are short runs of the file: each row shard receives whole tensors
    total = weight_bytes(hub)
    if directory.name.startswith("gpt2"):  # queries, keys and values are columns of one tensor, in short runs
        total += sum(2 * leaf.nbytes for path, leaf in stored_leaves(directory).items() if "c_attn.weight" in path)
    else:
        assert all(before[1] <= after[0] for before, after in pairwise(asked))
    assert sum(stop - start for start, stop in asked) == total


def test_streamed_columns_that_alternate_equal_local_ones(hub: Hub, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("gpt_oss")
    make_reference(GPT_OSS[0], directory)
    upload(hub, directory)
    for arguments in (TP, {"load_in_8bit": True}):
        expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)[1])
        found = streamed(**arguments)
        assert found.keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("name", "arguments", "times"),
    [
        ("ct_w4a16_g32_asym_llama", {}, 1.1),
        ("ct_w4a16_g32_asym_llama", TP, 1.1),
        ("fp8_block128_odd_llama", TP, 1.1),
        ("awq_gemm_g128_llama", TP, 1.1),  # rows are columns of the file
        ("awq_gemm_g128_llama", TP | {"dequantize": True}, 1.1),
        ("gptq_b4_g32_actorder_asym_llama", TP, 1.1),  # and columns are in another order: all shards fetch them once
        ("gptq_b4_g32_actorder_asym_llama", TP | {"dequantize": True}, 1.1),
    ],
)
def test_quantized_tensors_are_streamed_by_slices(hub: Hub, name: str, arguments: dict[str, Any], times: float):
    """Numbers of 4 bits with zero points along rows, and blocks cut by shards."""
    directory = Path(__file__).parent / "formats" / name
    upload(hub, directory)
    expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)[1])
    found = streamed(**arguments)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert sum(stop - start for start, stop in ranges(hub)) < times * weight_bytes(hub)


def stored_leaves(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def test_nothing_of_the_weights_is_stored(hub: Hub, directory: Path, tmp_path: Path):
    upload(hub, directory)
    streamed()
    assert not list((tmp_path / "hub_cache").rglob("*.safetensors"))


def test_shards_of_an_index_are_streamed(hub: Hub, tmp_path: Path):
    reference = make_reference(LLAMA, tmp_path / "whole")
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    upload(hub, tmp_path / "sharded")
    assert "model.safetensors.index.json" in hub.repos["org/model"].files
    expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "whole")[1])
    for path, leaf in streamed().items():
        np.testing.assert_array_equal(leaf, expected[path])


MOVED = np.r_[10:16, 0:10]
FORMS: dict[str, tuple[Expression, tuple[int, ...]]] = {
    "as it is": (Source("a"), (16, 24)),
    "transposed": (Transpose(Source("a")), (24, 16)),
    "permuted": (Rows(Source("a"), MOVED, 16), (16, 24)),
    "stack of transposes": (Stack((Transpose(Source("a")), Transpose(Source("b")))), (2, 24, 16)),
}


@pytest.mark.parametrize("long_runs", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_mesh_of_some_columns_gets_its_part(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, long_runs: bool
):
    monkeypatch.setattr(filling, "ROWS_BYTES", 125)
    if long_runs:
        monkeypatch.setattr(filling, "RUN_BYTES", 1)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((16, 24), np.float32) for name in "ab"}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    hub.repos["org/model"] = Repo(
        {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")}
    )
    opened = stream("org/model")
    assert not isinstance(opened, Path)
    expression, shape = FORMS[form]
    remote = Plan({"p": expression}, {"p": shape}, open_remote(opened.weights), ())
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * (len(shape) - 2), "x", "y"))
    for dtype in (np.float32, np.float16):
        params, _ = execute(remote, {"p": placement}, {"p": np.dtype(dtype)})
        np.testing.assert_array_equal(params["p"], wanted(form, **arrays).astype(dtype))
    part = np.empty((*shape[:-1], 5), np.float32)
    filler = filling.Filler(remote)
    filler.fill("p", (*(slice(0, dim) for dim in shape[:-1]), slice(3, 8)), part)
    np.testing.assert_array_equal(part, wanted(form, **arrays)[..., 3:8])
    columns_only = form in ("as it is", "permuted") and long_runs
    assert filler.bytes_read == (part.nbytes if columns_only or "transpose" in form else arrays["a"].nbytes)


def wanted(form: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return {"as it is": a, "transposed": a.T, "permuted": a[MOVED], "stack of transposes": np.stack([a.T, b.T])}[form]


def remote_file(hub: Hub, content: bytes) -> RemoteFile:
    hub.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": content})
    opened = stream("org/model")
    assert not isinstance(opened, Path)
    return opened.weights[Path("org/model/model.safetensors")]


def test_a_flipped_bit_is_noticed(hub: Hub, tmp_path: Path):
    make_reference(LLAMA, tmp_path)
    upload(hub, tmp_path)
    hub.faults["model.safetensors"] = Fault(body="corrupt", spared=4, times=1, storage=True)
    with pytest.raises(HubError, match=r"model\.safetensors: arrived damaged: it has sha256 \w+, but the Hub states"):
        streamed()
    assert hub.faults["model.safetensors"].times == 0


def test_ranges_in_any_order_have_the_hash_of_the_file(monkeypatch: pytest.MonkeyPatch):
    stated = Digest("sha256", sha256(CONTENT))
    view, end = memoryview(CONTENT), len(CONTENT)

    def fetch(start: int, out: memoryview) -> None:
        out[:] = view[start : start + len(out)]
        made.add(start, out)

    def verdict(stated: Digest | None, *parts: tuple[int, int]) -> str:
        nonlocal made
        made = RangeHash(end, stated, "org/model/weights")
        for start, stop in parts:
            made.add(start, view[start:stop])
        return made.verdict(fetch)

    made = RangeHash(end, stated, "")
    assert verdict(stated, (0, 10), (5000, end), (300, 5000), (10, 300)) == COMPARED
    assert verdict(Digest("sha1", git_id(CONTENT)), (9, end), (0, 9)) == "sha1 as the Hub states"
    assert verdict(stated, (10, 300), (450, end - 5)) == COMPARED, "the little that nobody needs is received for it"
    assert "5,450 bytes of it were not needed" in verdict(stated, (10, 300), (500, 5000)), "much of the file"
    assert "more than once" in verdict(stated, (0, 10), (5, end))
    assert "more than once" in verdict(stated, (10, 20), (15, 30), (0, 10))
    assert "states no hash" in verdict(None, (0, end))
    monkeypatch.setattr(hashed, "HELD_BYTES", 100)
    assert "another order" in verdict(stated, (10, 200))
    monkeypatch.setattr(hashed, "BRIDGED_BYTES", 100)
    assert verdict(stated, (0, 10)) == f"not compared: {end - 10:,} bytes of it were not needed"


CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize("how", ["drop", "reset"])
def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, how: Any):
    file, out = remote_file(hub, CONTENT), bytearray(8000)
    hub.faults["model.safetensors"] = Fault(body=how, times=2, storage=True)
    file.read_into(100, memoryview(out))
    assert bytes(out) == CONTENT[100:8100]
    assert [start for start, _ in asked_of(hub)] == [100, 4100, 6100]
    assert {stop for _, stop in asked_of(hub)} == {8100}


def asked_of(hub: Hub) -> list[tuple[int, int]]:
    asked = [request.range.removeprefix("bytes=").split("-") for request in hub.requests if request.range]
    return [(int(first), int(last) + 1) for first, last in asked]


def test_a_connection_that_always_breaks_is_given_up(hub: Hub):
    file = remote_file(hub, CONTENT)
    hub.faults["model.safetensors"] = Fault(body="drop", storage=True)
    with pytest.raises(HubError, match=r"org/model/model\.safetensors: .*tried 4 times"):
        file.read_into(0, memoryview(bytearray(8000)))


def test_a_changed_file_is_refused_by_name(hub: Hub):
    file, out = remote_file(hub, CONTENT), memoryview(bytearray(10))
    file.read_into(0, out)
    hub.faults["model.safetensors"] = Fault(body="other", storage=True)
    with pytest.raises(HubError, match=r"org/model/model\.safetensors: changed while it was read"):
        file.read_into(10, out)


def test_a_file_of_another_size_is_refused(hub: Hub):
    file, out = remote_file(hub, CONTENT), memoryview(bytearray(10))
    file.read_into(0, out)
    repo = hub.repos["org/model"]
    repo.branches = (*repo.branches, repo.sha)
    repo.files["model.safetensors"] = CONTENT + b"more"
    with pytest.raises(HubError, match=r"model\.safetensors: changed while it was read"):
        file.read_into(10, out)


def test_a_server_without_ranges_is_refused(hub: Hub):
    file = remote_file(hub, CONTENT)
    hub.faults["model.safetensors"] = Fault(body="whole", storage=True)
    with pytest.raises(HubError, match=r"does not send parts of files .*200.*; load without stream=True"):
        file.read_into(10, memoryview(bytearray(10)))


def test_an_expired_address_is_asked_for_again(hub: Hub):
    file, out = remote_file(hub, CONTENT), memoryview(bytearray(10))
    hub.faults["model.safetensors"] = Fault(status=403, times=1, storage=True)
    file.read_into(10, out)
    assert bytes(out) == CONTENT[10:20]
    assert sum(request.method == "HEAD" for request in hub.requests if request.path.endswith(".safetensors")) == 2


def test_the_token_goes_to_the_hub_only(hub: Hub, directory: Path):
    upload(hub, directory, token="hf_secret")
    streamed(token="hf_secret")
    assert {request.token for request in hub.requests if request.storage} == {None}
    assert {request.token for request in hub.requests if not request.storage} == {"hf_secret"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_what_is_no_safetensors_is_refused(hub: Hub, name: str):
    hub.repos["org/model"] = Repo({"config.json": b"{}", name: b"x" * 100})
    with pytest.raises(HubError, match="org/model: has no safetensors, and stream=True reads nothing else"):
        streamed()
    assert name not in hub.fetched()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"load_in_8bit": True}], ids=["float", "int8"])
def test_what_save_pretrained_wrote_loads_from_the_hub(
    hub: Hub, directory: Path, tmp_path: Path, arguments: dict[str, Any], stream: bool
):
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)
    model.save_pretrained(tmp_path / "saved")
    upload(hub, tmp_path / "saved")
    expected = flatten(params)
    for choices in ({"from_torch": False}, {}):  # it is recognised, too
        _, again = AutoEasyDeLModelForCausalLM.from_pretrained("org/model", stream=stream, **choices)
        found = flatten(again)
        assert found.keys() == expected.keys()
        for path, leaf in expected.items():
            assert found[path].dtype == leaf.dtype
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_streaming_needs_the_network(hub: Hub):
    with pytest.raises(ArgumentError, match="stream and local_files_only exclude each other"):
        streamed(local_files_only=True)


def test_a_broken_header_is_refused_by_name(hub: Hub):
    hub.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": (1000).to_bytes(8, "little") + b"{}"})
    with pytest.raises(CheckpointError, match=r"org/model/model\.safetensors: is truncated: 998 bytes of its header"):
        streamed()
