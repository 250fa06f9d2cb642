"""`easydel inspect` and `easydel plan` predict from headers the model that is then loaded."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import optax
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from commands import CASE, invoke, invoke_json, make_model
from gguf_files import TINY, letters, write_gguf
from hub_server import Repo, serving
from transformers import LlamaConfig

from easydel import AutoEasyDeLModelForCausalLM
from easydel.tree import flatten


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    model = make_model(folder)
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def tiny(reference: Any) -> Path:
    return reference.folder


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_of_a_repository_only_headers_are_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo(files)
        there, here = invoke_json(command, "org/model"), invoke_json(command, tiny)
        assert there | {"path": ""} == here | {"path": ""}
        asked = [request.range for request in hub.requests if request.method == "GET" and request.storage]
        stops = [int(text.rpartition("-")[2]) + 1 for text in asked if text]
        assert len(stops) == len(asked)
        assert max(stops) <= 8 + int.from_bytes(files["model.safetensors"][:8], "little")
        hub.repos["org/model"] = Repo({name: files[name] for name in ("config.json", "tokenizer.json")} | pickled(tiny))
        assert invoke_json(command, "org/model")["parameters"] == here["parameters"], "downloaded"
        assert (
            "org/model has neither safetensors nor GGUF: its weights are downloaded"
            in invoke(command, "org/model").stderr
        )


def test_of_a_gguf_repository_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_gguf(tmp_path / "m.gguf", TINY["llama-3.2"], tokenizer=letters)
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.repos["org/model"] = Repo({".gitattributes": b"", "m.gguf": file.read_bytes()})
        monkeypatch.setattr("easydel.checkpoint.gguf.REMOTE_STEP", 512)
        here, there = invoke_json("inspect", file), invoke_json("inspect", "org/model")
        assert there | {"path": ""} == here | {"path": ""}
        assert here["loads"]
        asked = [request.range for request in hub.requests if request.method == "GET" and request.storage]
        lengths = [
            int(stop) - int(start) + 1 for start, stop in (text.removeprefix("bytes=").split("-") for text in asked)
        ]
        assert len(lengths) > 2, "in growing parts"
        assert max(lengths) < file.stat().st_size / 2


def pickled(folder: Path) -> dict[str, bytes]:
    content = io.BytesIO()
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), content)
    return {"pytorch_model.bin": content.getvalue()}


def bytes_on_first_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def sparse_llama(folder: Path) -> int:
    """A Llama of 8 billion bfloat16 parameters, of which only the header is there; how many parameters."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_key_value_heads=8, vocab_size=128256)
    with_layers = {
        "input_layernorm": [4096], "post_attention_layernorm": [4096],
        "self_attn.q_proj": [4096, 4096], "self_attn.k_proj": [1024, 4096], "self_attn.v_proj": [1024, 4096],
        "self_attn.o_proj": [4096, 4096],
        "mlp.gate_proj": [14336, 4096], "mlp.up_proj": [14336, 4096], "mlp.down_proj": [4096, 14336],
    }  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": [128256, 4096],
        "lm_head.weight": [128256, 4096],
        "model.norm.weight": [4096],
    }
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in with_layers.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def test_inspect_tells_sizes_that_transformers_agrees_with(reference: Any):
    facts = invoke_json("inspect", reference.folder)
    assert facts["parameters"] == sum(parameter.numel() for parameter in reference.parameters())
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["head_dim"]) == (2, [6], [2], [8])
    assert (facts["tied"], facts["context"], facts["vocabulary"]) == (True, 512, CASE.config["vocab_size"])
    assert (facts["format"], list(facts["files"])) == ("safetensors", ["model.safetensors"])
    assert facts["dtypes"]["float32"]["numbers"] == facts["parameters"]
    assert facts["loads"]


def test_a_file_whose_tied_head_stands_for_the_token_vectors_is_told_and_planned_alike(tiny: Path, tmp_path: Path):
    tensors = safetensors.numpy.load_file(tiny / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    facts = invoke_json("inspect", tmp_path)
    assert (facts["loads"], facts["problem"], facts["tied"]) == (True, None, True)
    mesh = ("--mesh", "1,4,2,1")
    assert invoke_json("plan", tmp_path, *mesh)["rows"] == invoke_json("plan", tiny, *mesh)["rows"]
    reads = invoke_json("plan", tmp_path, *mesh, "--reads")["reads"]
    assert {read["tensor"] for read in reads if "embed_tokens" in read["parameter"]} == {"lm_head.weight"}


def test_inspect_puts_layers_together_in_its_tables(tiny: Path):
    shown = invoke("inspect", tiny).stdout
    row = next(line for line in shown.splitlines() if "q_proj" in line)
    assert [cell.strip() for cell in row.split("|")] == [
        "model.layers.*.self_attn.q_proj.weight",
        "[48, 48]",
        "float32",
        "2",
    ]


def test_inspect_of_an_unknown_model_type_still_tells_what_the_files_hold(tiny: Path, tmp_path: Path):
    config = json.loads((tiny / "config.json").read_text()) | {"model_type": "martian"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    facts = invoke_json("inspect", tmp_path)
    assert not facts["loads"]
    assert "'martian' is not implemented" in facts["problem"]
    assert facts["dtypes"]["float32"]["tensors"] == 20


def test_inspect_names_what_the_config_wants_and_the_files_lack(tiny: Path, tmp_path: Path):
    config = json.loads((tiny / "config.json").read_text()) | {"num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    shown = invoke("inspect", tmp_path).stdout
    assert "loads       no: " in shown
    assert "model.layers.3.mlp.up_proj.weight is missing" in shown


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"param_dtype": "bfloat16"},
        {"load_in_8bit": True},
        {"scan_layers": True},
        {"load_in_8bit": True, "scan_layers": True},
    ],
    ids=str,
)
def test_plan_foretells_the_bytes_on_each_device(tiny: Path, choices: dict[str, Any]):
    options = {"param_dtype": ["--param-dtype", "bf16"], "load_in_8bit": ["--int8"], "scan_layers": ["--scan-layers"]}
    given = [option for choice in choices for option in options[choice]]
    foretold = invoke_json("plan", tiny, "--mesh", "1,4,2,1", *given)
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        tiny, sharding_axis_dims=(1, 4, 2, 1), auto_shard_params=True, **choices
    )
    assert foretold["device_bytes"]["parameters"] == bytes_on_first_device(params)
    assert sum(row["total_bytes"] for row in foretold["rows"]) == sum(leaf.nbytes for leaf in flatten(params).values())


@pytest.mark.parametrize(("optimizer", "make"), [("adamw", optax.adamw), ("sgd", optax.sgd)])
def test_plan_counts_gradients_and_what_the_optimizer_keeps(tiny: Path, optimizer: str, make: Any):
    foretold = invoke_json("plan", tiny, "--mesh", "1,4,2,1", "--optimizer", optimizer)["device_bytes"]
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        tiny, sharding_axis_dims=(1, 4, 2, 1), auto_shard_params=True
    )
    kept = [leaf for leaf in jax.tree.leaves(make(1e-3).init(params)) if leaf.ndim]
    assert foretold["optimizer"] == bytes_on_first_device(kept)
    assert foretold["gradients"] == foretold["parameters"] == bytes_on_first_device(params)
    assert foretold["total"] == foretold["parameters"] + foretold["gradients"] + foretold["optimizer"]


def test_plan_of_training_what_is_stored_in_8_bits_is_refused(tiny: Path, tmp_path: Path):
    AutoEasyDeLModelForCausalLM.from_pretrained(tiny, load_in_8bit=True)[0].save_pretrained(tmp_path / "saved")
    result = invoke("plan", str(tmp_path / "saved"), "--optimizer", "adamw")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "int8 parameters are not trained" in result.stderr


def test_plan_counts_a_cache_of_the_given_size(tiny: Path):
    foretold = invoke_json("plan", tiny, "--mesh", "1,4,2,1", "--batch", 8, "--length", 100, "--dtype", "bf16")
    layers, batch, kv_heads, slots, channels, itemsize = 2, 8 // 4, 2 // 2, 128, 8, 2  # slots are a power of two
    assert foretold["device_bytes"]["cache"] == 2 * layers * batch * kv_heads * slots * channels * itemsize


def test_plan_counts_no_more_tokens_than_the_model_takes_unless_told(tiny: Path):
    assert invoke_json("plan", tiny)["length"] == CASE.config["max_position_embeddings"]
    assert invoke_json("plan", tiny, "--length", 4000)["length"] == 4000


def test_plan_says_what_is_held_more_than_once_and_why(tiny: Path):
    rows = invoke_json("plan", tiny, "--mesh", "1,32,2,1")["rows"]
    norms = next(row for row in rows if row["group"] == "norms")
    assert (norms["split"], norms["copies"], norms["device_bytes"]) == ("whole", 64, norms["total_bytes"])
    attention = [row for row in rows if row["group"] == "attention"]
    assert {row["why"] for row in attention} == {
        "dim 1 (48) is not divisible by fsdp=32: replicated",
        "dim 0 (48) is not divisible by fsdp=32: replicated",
    }
    shown = invoke("plan", tiny, "--mesh", "1,32,2,1").stdout
    assert "norms (input_layernorm post_attention_layernorm norm): 64 copies" in shown


@pytest.mark.parametrize(("memory", "fits"), [("1GiB", True), ("20KiB", False)])
def test_plan_says_whether_it_fits(tiny: Path, memory: str, fits: bool):
    assert invoke_json("plan", tiny, "--mesh", "fsdp=8", "--device-memory", memory)["fits"] is fits
    shown = invoke("plan", tiny, "--mesh", "fsdp=8", "--device-memory", memory)
    assert shown.exit_code == 0
    assert ("\nfits: " in shown.stdout, "does not fit: " in shown.stdout) == (fits, not fits)


def test_plan_without_memory_does_not_judge(tiny: Path):
    assert invoke_json("plan", tiny, "--mesh", "fsdp=8")["fits"] is None
    assert "fit" not in invoke("plan", tiny, "--mesh", "fsdp=8").stdout


def test_plan_without_a_mesh_is_for_the_devices_here(tiny: Path):
    assert invoke_json("plan", tiny)["mesh"] == {"dp": 1, "fsdp": 8, "tp": 1, "sp": 1}


def test_plan_refuses_a_mesh_that_would_split_heads_as_loading_does(tiny: Path):
    result = invoke("plan", tiny, "--mesh", "tp=4")
    assert result.exit_code == 2
    assert "kv_heads=2 cannot be split over tp=4" in result.stderr


def test_plan_with_replicated_kv_heads_counts_them_whole(tiny: Path):
    split, whole = (invoke_json("plan", tiny, "--mesh", "tp=2", *more) for more in ([], ["--replicate-kv"]))
    assert whole["device_bytes"]["cache"] == 2 * split["device_bytes"]["cache"]
    rows = {name: row for row in whole["rows"] for name in row["names"]}
    assert (rows["q_proj"]["copies"], rows["k_proj"]["copies"]) == (1, 2)


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_headers_of_a_model_too_large_for_here_suffice_and_no_backend_starts(command: str, tmp_path: Path):
    parameters = sparse_llama(tmp_path)
    mesh = ["--mesh", "1,32,8,1"] if command == "plan" else []
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))\n"
        "from easydel.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command, str(tmp_path), "--json", *mesh], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told, started = done.stdout.rstrip().rsplit("\n", 1)
    assert json.loads(told)["parameters"] == parameters
    assert started == "False"


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ((), {}),
        (("--param-dtype", "bf16"), {"param_dtype": "bfloat16"}),
        (("--int8",), {"load_in_8bit": True}),
        (("--scan-layers",), {"scan_layers": True}),
    ],
)
def test_the_reads_of_a_plan_are_those_of_the_load(tiny: Path, flags: tuple[str, ...], arguments: dict[str, Any]):
    planned = invoke_json("plan", tiny, "--mesh", "1,2,2,2", "--reads", *flags)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
        tiny, auto_shard_params=True, sharding_axis_dims=(1, 2, 2, 2), **arguments
    )
    report = model.load_report
    assert report is not None
    assert sum(planned["file_bytes"].values()) == report.bytes_read + report.bytes_mapped
    assert planned["file_bytes"].get("map", 0) == report.bytes_mapped
    assert sum(read["bytes"] for read in planned["reads"]) == sum(planned["file_bytes"].values())
    assert {read["action"] for read in planned["reads"]} == set(planned["file_bytes"])


def test_the_bytes_of_a_planned_read_are_the_slice_of_the_tensor(tiny: Path):
    tensors = safetensors.numpy.load_file(tiny / "model.safetensors")
    data = (tiny / "model.safetensors").read_bytes()
    reads = invoke_json("plan", tiny, "--mesh", "1,1,2,1", "--reads")["reads"]
    rows = [read for read in reads if read["parameter"].endswith("q_proj/kernel")]
    assert len(rows) == 4
    for read in rows:
        part = tensors[read["tensor"]][tuple(slice(*range_) for range_ in read["index"])]
        assert data[read["start"] : read["stop"]] == part.tobytes()


def test_reads_are_listed_for_people_too(tiny: Path):
    listed = invoke("plan", tiny, "--reads")
    assert listed.exit_code == 0
    assert "model/norm/scale[0:48]" in listed.stdout
