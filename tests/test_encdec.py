"""Encoder-decoders against transformers: the same logits, however they are computed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from cases import Case, all_cases
from parity import assert_close, make_reference, random_ids, reference_logits

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM, BaseNNXModule
from easydel.encdec import encode
from easydel.errors import ArgumentError, UnsupportedModelError

CASES = {case.name: case for case in all_cases() if case.seq2seq}
TARGETS = 9
FIRST_STEP = 5


@dataclass
class Loaded:
    case: Case
    directory: Path
    reference: Any
    model: BaseNNXModule
    params: dict[str, Any]
    inputs: dict[str, np.ndarray]
    logits: np.ndarray


def reference_of(case: Case, directory: Path) -> Any:
    """As `make_reference`, with a head of its own where T5's config asks: transformers only loads such models."""
    model = make_reference(case, directory)
    if case.config.get("tie_word_embeddings") is False and model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 4)
        model.save_pretrained(directory)
    return model


def expected_logits(model: Any, **inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, quick_compilation: None
) -> Iterator[Loaded]:
    case = request.param
    directory = tmp_path_factory.mktemp("model")
    reference = reference_of(case, directory)
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(directory)
    inputs = {"input_ids": random_ids(case), "decoder_input_ids": random_ids(case, length=TARGETS, seed=1)}
    yield Loaded(case, directory, reference, model, params, inputs, expected_logits(reference, **inputs))
    jax.clear_caches()


def padded(inputs: dict[str, np.ndarray], *, left: bool) -> dict[str, np.ndarray]:
    """The inputs with masks: the first row whole, of the second some tokens of the encoder and of the decoder."""
    masks = {}
    for name, missing in (("attention_mask", 4), ("decoder_attention_mask", 2)):
        shape = inputs["decoder_input_ids" if name.startswith("decoder") else "input_ids"].shape
        masks[name] = np.ones(shape, np.int64)
        masks[name][1, slice(0, missing) if left else slice(shape[1] - missing, None)] = 0
    return inputs | masks


def decoded(model: BaseNNXModule, params: Any, first: dict[str, Any], decoder_ids: np.ndarray) -> np.ndarray:
    """Logits of decoder tokens fed one by one after the first few, which come with the inputs `first`."""
    cache = model.init_cache(len(decoder_ids), TARGETS + 3)
    out = model.apply(params, **first, decoder_input_ids=decoder_ids[:, :FIRST_STEP], cache=cache)
    steps = [out.logits]
    for token in range(FIRST_STEP, TARGETS):
        out = model.apply(params, decoder_input_ids=decoder_ids[:, token : token + 1], cache=out.cache)
        steps.append(out.logits)
    return np.concatenate(steps, axis=1)


def test_logits_equal_transformers(loaded: Loaded):
    assert_close(loaded.model(**loaded.inputs).logits, loaded.logits)


def test_right_padded_batches_equal_transformers(loaded: Loaded):
    inputs = padded(loaded.inputs, left=False)
    expected = expected_logits(loaded.reference, **inputs)
    assert_close(loaded.model(**inputs).logits, expected, inputs["decoder_attention_mask"])


def test_left_padded_rows_equal_transformers_without_padding(loaded: Loaded):
    inputs = padded(loaded.inputs, left=True)
    row = {
        "input_ids": inputs["input_ids"][1:, 4:],
        "decoder_input_ids": inputs["decoder_input_ids"][1:, 2:],
    }
    ours = np.asarray(loaded.model(**inputs).logits)
    assert_close(ours[:1], loaded.logits[:1])
    assert_close(ours[1:, 2:], expected_logits(loaded.reference, **row))


def test_cached_decode_equals_transformers(loaded: Loaded):
    first = {"input_ids": loaded.inputs["input_ids"]}
    assert_close(decoded(loaded.model, loaded.params, first, loaded.inputs["decoder_input_ids"]), loaded.logits)


def test_padded_cached_decode_from_encoder_outputs_equals_the_full_forward(loaded: Loaded):
    inputs = padded(loaded.inputs, left=True)
    mask, decoder_mask = inputs["attention_mask"], inputs["decoder_attention_mask"]
    states = loaded.model.compiled(encode)(loaded.params, inputs["input_ids"], mask)
    first = {"attention_mask": mask, "encoder_outputs": states, "decoder_attention_mask": decoder_mask[:, :FIRST_STEP]}
    ours = decoded(loaded.model, loaded.params, first, inputs["decoder_input_ids"])
    assert_close(ours, np.asarray(loaded.model(**inputs).logits), decoder_mask)


@pytest.mark.parametrize("masked", [True, False])
def test_the_cache_keeps_its_structure_after_the_first_call(loaded: Loaded, masked: bool):
    ids, token = loaded.inputs["input_ids"], loaded.inputs["decoder_input_ids"][:, :1]
    mask = np.ones_like(ids) if masked else None

    def calls() -> tuple[Any, Any]:
        first = loaded.model(ids, mask, decoder_input_ids=token, cache=loaded.model.init_cache(len(ids), 4)).cache
        return first, loaded.model(decoder_input_ids=token, cache=first).cache

    first, second = jax.eval_shape(calls)
    assert first == second


def test_scanned_decode_equals_transformers(loaded: Loaded):
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(loaded.directory, scan_layers=True, remat=True)
    first = {"input_ids": loaded.inputs["input_ids"]}
    assert_close(decoded(model, params, first, loaded.inputs["decoder_input_ids"]), loaded.logits)


def test_sharded_decode_equals_transformers(loaded: Loaded):
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(
        loaded.directory, auto_shard_params=True, sharding_axis_dims=(1, 2, loaded.case.tp, -1)
    )
    first = {"input_ids": loaded.inputs["input_ids"]}
    assert_close(decoded(model, params, first, loaded.inputs["decoder_input_ids"]), loaded.logits)


def test_the_causal_class_loads_encoder_decoders_and_says_so(loaded: Loaded, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "easydel"):
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory)
    assert [record.message for record in caplog.records if "encoder-decoder" in record.message] != []
    assert_close(model(**loaded.inputs).logits, loaded.logits)


def test_saved_encoder_decoders_come_back_as_such(loaded: Loaded, tmp_path: Path):
    loaded.model.save_pretrained(tmp_path / "saved")
    again, _ = BaseNNXModule.from_pretrained(tmp_path / "saved")
    assert again.record == loaded.model.record


def test_exported_encoder_decoders_load_in_transformers(loaded: Loaded, tmp_path: Path):
    loaded.model.export(tmp_path / "exported")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "exported").eval()
    for name, tensor in loaded.reference.state_dict().items():
        if name != "model.shared.weight" or loaded.case.config.get("tie_word_embeddings", True):  # unused if untied
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("bart")
    return reference_of(CASES["bart-tied"], directory), directory


@pytest.fixture(scope="module")
def flan_t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("t5")
    return reference_of(CASES["t5-untied-gated"], directory), directory


def edit_config(directory: Path, **values: Any) -> None:
    """Set keys of the config, or remove those that are None."""
    file = directory / "config.json"
    config = json.loads(file.read_bytes()) | values
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


IDS = {"input_ids": random_ids(CASES["bart-tied"])}
BOTH = IDS | {"decoder_input_ids": random_ids(CASES["bart-tied"], length=TARGETS, seed=1)}


def test_without_decoder_inputs_bart_decodes_labels_or_its_inputs_shifted(bart: tuple[Any, Path]):
    reference, directory = bart
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(directory)
    assert_close(model(**IDS).logits, expected_logits(reference, **IDS))
    labels = BOTH["decoder_input_ids"].copy()
    labels[1, -3:] = -100
    assert_close(model(**IDS, labels=labels).logits, expected_logits(reference, **IDS, labels=labels))


def test_without_decoder_inputs_t5_is_refused(flan_t5: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(flan_t5[1])
    with pytest.raises(ArgumentError, match="pass what is decoded so far"):
        model(**IDS)


def test_more_tokens_than_positions_are_refused(bart: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(bart[1])
    with pytest.raises(ArgumentError, match="40 tokens are more than the 32 positions"):
        model(np.full((1, 40), 5))


def test_decoding_without_anything_to_attend_to_is_refused(bart: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(bart[1])
    with pytest.raises(ArgumentError, match="pass input_ids, encoder_outputs or a used cache"):
        model(decoder_input_ids=IDS["input_ids"], cache=model.init_cache(2, 20))


def test_new_inputs_replace_what_the_cache_knew_of_the_encoder(bart: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(bart[1])
    ids, tokens = BOTH["input_ids"], BOTH["decoder_input_ids"]
    fresh = model.init_cache(2, TARGETS)
    used = model(ids[:, ::-1], decoder_input_ids=tokens, cache=fresh).cache
    again = {**used, "offset": fresh["offset"], "valid": fresh["valid"]}
    assert_close(model(ids, decoder_input_ids=tokens, cache=again).logits, expected_logits(bart[0], **BOTH))


def test_bart_as_the_hub_has_it_loads(bart: tuple[Any, Path], tmp_path: Path):
    reference, _ = bart
    reference.model.save_pretrained(tmp_path)  # no "model." in front, no final_logits_bias
    old = {"num_hidden_layers": 3, "normalize_embedding": True, "normalize_before": False, "save_step": 58}
    edit_config(tmp_path, **old)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    expected = expected_logits(reference, **BOTH) - reference.final_logits_bias.numpy()
    assert_close(model(**BOTH).logits, expected)


def test_t5_is_an_encoder_decoder_whatever_its_config_says(flan_t5: tuple[Any, Path], tmp_path: Path):
    reference, _ = flan_t5
    reference.save_pretrained(tmp_path)
    edit_config(tmp_path, is_encoder_decoder=None, architectures=None)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert_close(model(**BOTH).logits, expected_logits(reference, **BOTH))


def test_a_decoder_is_refused_by_the_class_for_encoder_decoders(tmp_path: Path):
    make_reference(next(case for case in all_cases() if case.name == "llama-plain"), tmp_path)
    with pytest.raises(UnsupportedModelError, match="load it with AutoEasyDeLModelForCausalLM"):
        AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)


COPIES = ("model.shared.weight", *(f"model.{part}coder.embed_tokens.weight" for part in ("en", "de")), "lm_head.weight")


@pytest.mark.parametrize("kept", COPIES)
def test_a_checkpoint_with_any_one_copy_of_the_embedding_loads(bart: tuple[Any, Path], tmp_path: Path, kept: str):
    reference, directory = bart
    found = reference.state_dict().items()
    tensors = {name: tensor.clone() for name, tensor in found if name == kept or name not in COPIES}
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_close(model(**BOTH).logits, expected_logits(reference, **BOTH))


def test_the_decoder_of_an_encoder_decoder_loads_alone(bart: tuple[Any, Path], tmp_path: Path):
    bart[0].save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BartForCausalLM"])
    reference = transformers.BartForCausalLM(bart[0].config).eval()  # from_pretrained would not find its embedding
    reference.model.decoder.load_state_dict(bart[0].model.decoder.state_dict())
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert "encoder" not in params["model"]
    assert_close(model(**IDS).logits, reference_logits(reference, IDS["input_ids"]))


def test_flan_t5_as_the_hub_has_it_loads(flan_t5: tuple[Any, Path], tmp_path: Path):
    reference, _ = flan_t5
    reference.save_pretrained(tmp_path)
    made_by_transformers = dict.fromkeys(["scale_decoder_outputs", "dense_act_fn", "is_gated_act"])
    edit_config(tmp_path, **made_by_transformers, tie_word_embeddings=False, n_positions=512)
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert "lm_head" in params
    assert_close(model(**BOTH).logits, expected_logits(reference, **BOTH))


def test_an_untied_t5_whose_file_has_no_head_is_tied_without_scaling(tmp_path: Path):
    case = CASES["t5-untied-gated"]
    reference = make_reference(case, tmp_path)
    assert reference.lm_head.weight is reference.shared.weight
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_close(model(**BOTH).logits, expected_logits(reference, **BOTH))
