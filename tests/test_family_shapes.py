"""Properties of every case's model without a single value: its parameters' places, and possible operations on them."""

from __future__ import annotations

import json
import math

import pytest
import transformers
from cases import Case, all_cases
from trained import described, empty

from easydel.config import HFConfig
from easydel.families import find_family
from easydel.layers.stack import stacks
from easydel.lora import LoRA
from easydel.lora.places import adapt, places_of
from easydel.quantize import make_int8
from easydel.sharding import PartitionAxis, default_rules, match_rules
from easydel.tree import flatten

EACH = pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
SCANNED = pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
# In models as tiny as these, what has two dimensions and more numbers than this can be stored in 8 bits.
LARGE = 300
# Ends of the paths of those that cannot, and why.
IN_FLOATS = {
    "mlp/gate/kernel": "a router is small, and its errors change the choice of experts",
    "mlp/moe/gate/kernel": "as the other routers",
    "self_attn/gate/kernel": "as the other routers",
    "experts/up_proj/bias": "it has a number per expert and channel, as other biases have per channel",
    "mlp/gate/down_proj/kernel": "as the other routers",
    "mixer/x_proj/kernel": "states decay by exponentials of what it makes",
    "mixer/dt_proj/kernel": "states decay by exponentials of what it makes",
    "mixer/x_proj_weight": "states decay by exponentials of what it makes",
    "mixer/dt_proj_weight": "states decay by exponentials of what it makes",
    "mixer/input_gate_weight": "states add up what it lets in",
    "mixer/recurrent_gate_weight": "states decay by exponentials of what it makes",
    "conv1d/kernel": "it has a few numbers per channel",
    "conv_channels/kernel": "it has a few numbers per channel",
    "conv_heads/kernel": "as the other convolutions",
    "linear_attn/in_proj_a/kernel": "states are products of what it makes",
    "linear_attn/in_proj_b/kernel": "states are products of what it makes",
    "ngrams/table/embedding": "its rows are looked up as they are",
    "reader/write/kernel": "a few numbers say how much goes into each stream",
    "attn_hc/kernel": "all layers' weights of streams depend on it, and in files it has 32 bits",
    "ffn_hc/kernel": "as attn_hc",
    "stream/weights/kernel": "as attn_hc",
    "mixer/A_log": "states decay by exponentials of its exponentials",
}


def shapes_of(case: Case, **choices: bool) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(empty(case, **choices).params).items()}


@EACH
def test_config_is_the_same_read_by_us_or_written_by_transformers(case: Case):
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    family = find_family(case.model_type, encoder_decoder=case.seq2seq)
    written = family.configured(HFConfig(json.loads(config.to_json_string(use_diff=False))))
    assert family.record(written)[0] == described(case)[0]


@EACH
@SCANNED
def test_partition_rules_fit_every_parameter(case: Case, scan_layers: bool):
    match_rules(shapes_of(case, scan_layers=scan_layers), default_rules(PartitionAxis()))


@EACH
def test_stacks_hold_every_layer_once_with_its_equals(case: Case):
    for blocks in described(case)[0].layer_stacks.values():
        found = stacks(blocks).values()
        assert sorted(layer for layers in found for layer in layers) == list(range(len(blocks)))
        assert all(blocks[layer] == blocks[layers[0]] for layers in found for layer in layers)


@EACH
def test_scanned_parameters_are_those_of_single_layers(case: Case):
    scanned = empty(case, scan_layers=True).canonical_paths()
    assert sorted(path for parts in scanned.values() for path in parts) == sorted(shapes_of(case))


@EACH
def test_large_parameters_can_be_int8(case: Case):
    model = empty(case)
    quantized = make_int8(model, None)
    shapes = shapes_of(case)
    floats = {path for path, shape in shapes.items() if len(shape) > 1 and math.prod(shape) > LARGE} - set(quantized)
    assert {path for path in floats if not path.endswith(tuple(IN_FLOATS))} == set()
    leaves = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    assert {path: leaves[f"{path}_scale"] for path in quantized} == {path: shapes[path][:-1] for path in quantized}
    match_rules(leaves, default_rules(PartitionAxis()))


@EACH
@SCANNED
def test_adapters_fit_beside_every_matrix(case: Case, scan_layers: bool):
    model = empty(case, scan_layers=scan_layers)
    chosen = [place for place in places_of(model) if None not in place.homes]
    adapt(model, {place.path: (place, LoRA(r=2)) for place in chosen})
    leaves = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    assert chosen
    for place in chosen:
        outputs, inputs = leaves[place.matrix][-2:] if place.leaf == "kernel" else leaves[place.matrix][:-3:-1]
        stack = leaves[place.matrix][:-2]
        assert leaves[f"{place.path}/lora_A"] == (*stack, 2, inputs)
        assert leaves[f"{place.path}/lora_B"] == (*stack, outputs, 2)
    match_rules(leaves, default_rules(PartitionAxis()))
