"""The features that only encoder-decoders have: two inputs, of which either may be padded, shifted, or precomputed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from cases import all_cases
from cover import covering_cases
from loaded import TARGETS, Loaded
from parity import assert_close, logits_of, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM, BaseNNXModule
from easydel.config import HFConfig
from easydel.encdec import encode
from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.families import all_families, all_wrappers, find_family
from easydel.families._refused import REFUSED

CASES = {case.name: case for case in all_cases() if case.seq2seq}
COVERING = [case for case in covering_cases() if case.seq2seq]
EACH = pytest.mark.parametrize("loaded", COVERING, ids=lambda case: case.name, indirect=True)


@EACH
def test_right_padded_batches_equal_transformers(loaded: Loaded):
    inputs = {name: array[:, ::-1].copy() if "mask" in name else array for name, array in loaded.padded.items()}
    assert_close(loaded.model(**inputs).logits, logits_of(loaded.reference, **inputs), inputs[loaded.mask_name])


@pytest.mark.parametrize("loaded", [CASES["led-untied"]], ids=lambda case: case.name, indirect=True)
def test_marked_tokens_see_all_others_as_in_transformers(loaded: Loaded):
    marks = np.zeros_like(loaded.ids)
    marks[1, [4, 5, 12]] = 1
    for side in (slice(None), slice(None, None, -1)):
        masks = {name: array[:, side].copy() for name, array in loaded.padded.items() if "mask" in name}
        inputs = loaded.inputs | masks | {"global_attention_mask": marks[:, side].copy()}
        expected = logits_of(loaded.reference, **inputs)
        if side.step is None:
            row = {name: array[1:, 2 if "decoder" in name else 3 :] for name, array in inputs.items()}
            expected[1, 2:] = logits_of(loaded.reference, **row)[0]
        assert_close(loaded.model(**inputs).logits, expected, inputs["decoder_attention_mask"])
    with pytest.raises(ArgumentError, match=r"global_attention_mask has shape \(1, 13\), expected \(2, 13\)"):
        loaded.model(**loaded.inputs, global_attention_mask=marks[:1])
    with pytest.raises(ArgumentError, match="global_attention_mask is for the encoder, which does not run"):
        loaded.model(**loaded.inputs | {"input_ids": None}, global_attention_mask=marks)


@EACH
def test_cached_decode_without_masks_equals_transformers(loaded: Loaded):
    ours = loaded.decoded(loaded.model, loaded.params, attention_mask=None, decoder_attention_mask=None)
    assert_close(ours, loaded.logits)


@EACH
def test_cached_decode_from_encoder_outputs_equals_transformers(loaded: Loaded):
    states = loaded.model.compiled(encode)(loaded.params, loaded.ids, loaded.padded["attention_mask"])
    ours = loaded.decoded(loaded.model, loaded.params, input_ids=None, encoder_outputs=states)
    assert_close(ours, loaded.cached_logits, loaded.mask)


@EACH
@pytest.mark.parametrize("masked", [True, False])
def test_the_cache_keeps_its_structure_after_the_first_call(loaded: Loaded, masked: bool):
    ids, token = loaded.inputs["input_ids"], loaded.inputs["decoder_input_ids"][:, :1]
    mask = np.ones_like(ids) if masked else None

    def calls() -> tuple[Any, Any]:
        first = loaded.model(ids, mask, decoder_input_ids=token, cache=loaded.model.init_cache(len(ids), 4)).cache
        return first, loaded.model(decoder_input_ids=token, cache=first).cache

    first, second = jax.eval_shape(calls)
    assert first == second


@EACH
def test_the_causal_class_loads_encoder_decoders_and_says_so(loaded: Loaded, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "easydel"):
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory)
    assert [record.message for record in caplog.records if "encoder-decoder" in record.message] != []
    assert_close(model(**loaded.inputs).logits, loaded.logits)


@EACH
def test_saved_encoder_decoders_come_back_as_such(loaded: Loaded, tmp_path: Path):
    loaded.model.save_pretrained(tmp_path / "saved")
    again, _ = BaseNNXModule.from_pretrained(tmp_path / "saved")
    assert again.record == loaded.model.record


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("bart")
    return make_reference(CASES["bart-tied"], directory), directory


@pytest.fixture(scope="module")
def flan_t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("t5")
    return make_reference(CASES["t5-untied-gated"], directory), directory


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
    assert_close(model(**IDS).logits, logits_of(reference, **IDS))
    labels = BOTH["decoder_input_ids"].copy()
    labels[1, -3:] = -100
    assert_close(model(**IDS, labels=labels).logits, logits_of(reference, **IDS, labels=labels))


def test_without_decoder_inputs_t5_is_refused(flan_t5: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(flan_t5[1])
    with pytest.raises(ArgumentError, match="pass what is decoded so far"):
        model(**IDS)


def test_marks_are_refused_where_no_encoder_reads_them(bart: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(bart[1])
    for call in (model, model.generate):
        with pytest.raises(ArgumentError, match="the model takes no global_attention_mask"):
            call(IDS["input_ids"], global_attention_mask=np.ones_like(IDS["input_ids"]))


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
    assert_close(model(ids, decoder_input_ids=tokens, cache=again).logits, logits_of(bart[0], **BOTH))


def test_bart_as_the_hub_has_it_loads(bart: tuple[Any, Path], tmp_path: Path):
    reference, _ = bart
    reference.model.save_pretrained(tmp_path)  # no "model." in front, no final_logits_bias
    old = {"num_hidden_layers": 3, "normalize_embedding": True, "normalize_before": False, "save_step": 58}
    edit_config(tmp_path, **old)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    expected = logits_of(reference, **BOTH) - reference.final_logits_bias.numpy()
    assert_close(model(**BOTH).logits, expected)


def test_t5_is_an_encoder_decoder_whatever_its_config_says(flan_t5: tuple[Any, Path], tmp_path: Path):
    reference, _ = flan_t5
    reference.save_pretrained(tmp_path)
    edit_config(tmp_path, is_encoder_decoder=None, architectures=None)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert_close(model(**BOTH).logits, logits_of(reference, **BOTH))


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
    assert_close(model(**BOTH).logits, logits_of(reference, **BOTH))


@pytest.mark.parametrize("name", ["bart-tied", "bert2bert"])
def test_a_head_that_differs_from_vectors_that_it_is_tied_to_is_refused(tmp_path: Path, name: str):
    reference = make_reference(CASES[name], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = next(path for path, module in reference.named_modules() if module is reference.get_output_embeddings())
    tensors[f"{head}.weight"] = reference.get_output_embeddings().weight.detach().numpy()
    save_file(tensors, tmp_path / "model.safetensors")
    AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    tensors[f"{head}.weight"] = tensors[f"{head}.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="head is tied, but it differs from the decoder's token vectors"):
        AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)


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
    assert_close(model(**BOTH).logits, logits_of(reference, **BOTH))


def test_an_untied_t5_whose_file_has_no_head_is_tied_without_scaling(tmp_path: Path):
    reference = make_reference(CASES["t5-untied-gated"], tmp_path)
    reference.lm_head.weight = reference.shared.weight
    reference.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_close(model(**BOTH).logits, logits_of(reference, **BOTH))


def test_every_sequence_to_sequence_type_loads_or_is_refused_with_the_reason():
    loaded = {family.model_type for family in all_families()} | all_wrappers().keys()
    assert {*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES} - loaded <= REFUSED.keys()
    assert loaded.isdisjoint(REFUSED)


def test_all_22_encoder_decoders_of_text_load():
    wholes = {family.model_type for family in all_families() if family.encoder_decoder} - {"encoder-decoder"}
    assert len(wholes) == 22


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"decoder": {"model_type": "xlm"}}, "the decoder is a 'xlm', known in pairs: bert, .*, gpt2"),
        ({"encoder": {"model_type": "gpt2"}}, "the encoder is a 'gpt2', known in pairs: bert, "),
        ({"decoder": {"is_decoder": False}}, "is_decoder of the decoder, expected True"),
        ({"decoder": {"cross_attention_hidden_size": 60}}, "cross_attention_hidden_size=60 of the decoder"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder"),
        ({"encoder": {"hidden_act": "gelu", "alibi": True}}, "alibi"),
    ],
    ids=["decoder", "encoder", "sight", "states", "tied", "key"],
)
def test_pairs_without_code_are_refused_by_name(towers: dict[str, Any], message: str):
    family = find_family("encoder-decoder", encoder_decoder=True)
    with pytest.raises(UnsupportedModelError, match=message):
        family.record(family.configured(HFConfig(towers)))
