"""Compiled programs: what they send between devices and hold in memory, found without running them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from foretold import as_large_as, built, llama, made_by, needs_libtpu, read_from_memory, sent_by
from jax.sharding import NamedSharding, PartitionSpec as P

from easydel.aot.cost import bytes_on_each
from easydel.aot.flops import flops
from easydel.aot.hlo import Collective, collectives, cycles
from easydel.aot.topology import topology_mesh
from easydel.aot.tracing import cache_of, placed_shapes, trace_prefill, trace_step, trace_training
from easydel.errors import ArgumentError
from easydel.lora import LoRA
from easydel.lora.places import adapt, targeted
from easydel.ops.sampling import Rules, Sampling
from easydel.quantize import make_int4, make_int8
from easydel.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("flags_kept", "full_optimization")
VOCAB = 4096
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)
COUNT, ENDS = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (2,)))
KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


def test_bytes_that_are_sent_count_once_for_each_run_of_a_loop():
    mesh = make_mesh((1, 2, 4, 1))

    def local(x: jax.Array) -> jax.Array:
        def twice(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.psum(x, "tp") / 4, None

        x, _ = jax.lax.scan(twice, x, None, length=5)
        x = jax.lax.all_gather(x, "fsdp", tiled=True)
        return jax.lax.psum_scatter(jax.lax.ppermute(x, "tp", [(0, 1), (1, 0)]), ("fsdp", "tp"), tiled=True)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P(("fsdp", "tp")), check_vma=False)
    x = jax.ShapeDtypeStruct((32, 6), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    found = collectives(jax.jit(mapped).lower(x).compile().as_text(), mesh.shape)
    assert sorted(found, key=lambda one: one.kind) == [
        Collective("all-gather", ("fsdp",), sent=32 * 6 * 4 // 2, largest=32 * 6, times=1),
        Collective("all-reduce", ("tp",), sent=2 * 16 * 6 * 4 * 3 // 4, largest=16 * 6, times=5),
        Collective("collective-permute", ("tp",), sent=32 * 6 * 4, largest=32 * 6, times=1),
        Collective("reduce-scatter", ("fsdp", "tp"), sent=4 * 6 * 4 * 7, largest=32 * 6, times=1),
    ]


TPU_TEXT = """
%all-reduce-scatter.1 (input: bf16[32,16]) -> bf16[8,16] {
  %all-reduce = bf16[32,16]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, replica_groups={{0,2,4,6},{1,3,5,7}}
}
%fused (p: bf16[4,16]) -> bf16[8,16] {
  %ag = bf16[8,16]{1} all-gather(%p), channel_id=4, replica_groups=mesh['a'=4,'b'=2] {'b'}, attributes={chain_id="0"}
}
%body (p: (s32[])) -> (s32[]) {
  %kernel = f32[8,128]{1,0} custom-call(%p), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={"flag_configs":[]}
  %fusion.1 = bf16[8,16]{1,0} fusion(%p), calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"20"}
  %sort = s32[8]{0} sort(%p), dimensions={0}, backend_config={"estimated_cycles":"18446744073709551615"}
  %fusion.2 = bf16[8,16]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %start = (f32[4]{0}, f32[8]{0}, u32[], u32[]) all-gather-start(%q), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0)
}
%short (p: f32[8]) -> f32[8] {
  %fusion.4 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"100"}
}
%long (p: f32[8]) -> f32[8] {
  %fusion.5 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"500"}
}
%condition (p: (s32[])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%element, %constant.3), direction=LT
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %fusion.3 = bf16[8,16]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %either = f32[8]{0} conditional(%index, %p, %p), branch_computations={%short, %long}
  %while.1 = (s32[]) while(%tuple), condition=%condition, body=%body, backend_config={"estimated_cycles":"3"}
}
"""


def test_what_tpu_programs_send_is_read_from_fusions_and_conditions_too():
    """One operation in several fusions has one channel, and counts once."""
    assert sorted(collectives(TPU_TEXT, {"fsdp": 4, "tp": 2}), key=lambda one: one.sent) == [
        Collective("all-gather", ("fsdp",), sent=24, largest=8, times=7),
        Collective("all-gather", ("tp",), sent=128, largest=128, times=8),
        Collective("reduce-scatter", ("fsdp",), sent=768, largest=512, times=7),
    ]
    assert cycles(TPU_TEXT) == 7 * 20 + 3 + 500


def test_operations_of_products_count_in_loops_and_on_every_device():
    mesh = make_mesh((1, 4, 2, 1))

    def computed(x: jax.Array, y: jax.Array, experts: jax.Array) -> Any:
        looped, _ = jax.lax.scan(lambda x, _: (x @ y, None), x, None, length=5)
        apart = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"), check_vma=False)
        branch = jax.lax.cond(looped[0, 0] > 0, lambda: looped @ y, lambda: looped)
        return apart(x, y), branch, jax.lax.ragged_dot(x, experts, jnp.array([5, 3]))

    shapes = ((8, 6), (6, 6), (2, 6, 7))
    traced = jax.jit(computed).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    product = 2 * 8 * 6 * 6
    assert flops(traced.jaxpr.jaxpr) == (5 + 1 + 1) * product + product * 2 + 2 * 8 * 6 * 7 - product


RULES = {
    "likeliest": Rules(),
    "penalized": Rules(repetition_penalty=NUMBER, no_repeat_ngram_size=3, eos_E=ENDS, min_new_tokens=COUNT),
    "top_k": Rules(Sampling(KEY, NUMBER, COUNT, NUMBER, None, candidates=50)),
    "all": Rules(Sampling(KEY, NUMBER, None, NUMBER, NUMBER)),
}


def test_training_gathers_the_head_once_and_moves_its_gradient_once():
    """However many groups of tokens there are: here 8."""
    mesh = make_mesh((1, 4, 2, 1))
    model, params = built(llama(num_hidden_layers=1), mesh)
    traced = trace_training(model, params, optax.sgd(1e-3), 8, 64, tokens=8)
    share, others = VOCAB * 64 // mesh.shape["tp"], (mesh.shape["fsdp"] - 1) / mesh.shape["fsdp"]
    large = as_large_as(share, sent_by(model, traced))
    assert len(large) == 2, "nothing else is as large as a head, the token vectors and their gradient included"
    assert sum(one.total for one in large) <= 2 * 4 * share * others  # CPUs gather bfloat16 as float32


def test_what_a_prompt_takes_beside_weights_falls_as_the_devices_that_share_it():
    shares = []
    for dims in ((1, 4, 1, 2), (1, 1, 1, 8)):
        model, params = built(llama(num_hidden_layers=1, vocab_size=256), make_mesh(dims))
        memory: Any = trace_prefill(model, params, 1, 8192).lower().compile().memory_analysis()
        shares.append((memory.temp_size_in_bytes + memory.output_size_in_bytes) * dims[3])
    assert shares[1] < 1.05 * shares[0]


def test_what_cannot_be_compiled_for_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easydel.aot.topology.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="tpu-plan"):
        topology_mesh("v5e:2x4")


# with the TPU compiler; it takes less time than LLVM


@needs_libtpu
@pytest.mark.parametrize("name", RULES)
def test_choosing_a_token_moves_neither_head_nor_logits(name: str):
    model, params = _tensor_parallel()
    found = sent_by(model, trace_step(model, params, 8, 128, RULES[name]))
    assert as_large_as(VOCAB, found) == []


@needs_libtpu
@pytest.mark.parametrize("dims", [(1, 16, 1, 1), (1, 4, 1, 4)], ids=str)
def test_on_a_plane_of_chips_each_gets_its_part_of_the_heads_gradient_alone(dims: tuple[int, ...]):
    """XLA summed all of it on every chip."""
    model, params = built(llama(hidden_size=512, num_hidden_layers=1), topology_mesh("v5e:4x4", dims))
    traced = trace_training(model, params, optax.sgd(1e-3), 16, 32, tokens=8)
    large = as_large_as(VOCAB * 512 // 4, sent_by(model, traced))
    assert {one.kind for one in large} == {"all-gather", "reduce-scatter"}, "of the head, and of its gradient"
    assert sum(one.total for one in large) < 1.01 * (2 + 4) * VOCAB * 512 * 15 / 16, "gathered in 16 bits, summed in 32"


@needs_libtpu
@pytest.mark.parametrize(("dims", "rows"), [((1, 8, 1, 1), 8), ((2, 2, 2, 1), 8), ((1, 4, 2, 1), 4)], ids=str)
def test_for_one_token_a_row_parameters_stay_where_they_are(dims: tuple[int, ...], rows: int):
    model, params = built(llama(hidden_size=512, intermediate_size=1024), topology_mesh("v5e:2x4", dims))
    found = sent_by(model, trace_step(model, params, rows, 128))
    assert as_large_as(512 * 512 // dims[2], found) == [], "what is as large as the smallest kernel"
    assert sum(one.total for one in found) < 400_000, "of 14 million bytes"


@needs_libtpu
@pytest.mark.parametrize("dims", [(1, 8, 1, 1), (1, 1, 1, 8), (1, 2, 4, 1)], ids=str)
def test_of_one_row_one_is_summed_although_a_tpu_multiplies_eight(dims: tuple[int, ...]):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    model, params = built(llama(**sizes), topology_mesh("v5e:2x4", dims))
    summed = 3 * 512 + 2 * 1024 + VOCAB  # queries, keys, values, both inputs of the activation, and logits
    whole = 4 * 512  # before and behind attention and the activation, or in float32 in attention over sp
    sent = sum(one.total for one in sent_by(model, trace_step(model, params, 1, 128)))
    assert sent < 1.1 * 2 * (2 * summed + 2 * whole)


@needs_libtpu
def test_of_one_row_one_is_summed_by_routers_and_adapters_too():
    """There are so many experts, and adapters of so high a rank, that eight rows of either are more than all logits."""
    experts = rank = VOCAB // 4
    sizes: Any = {"hidden_size": 512, "num_hidden_layers": 1, "num_experts": experts, "moe_intermediate_size": 16}
    config = llama(**sizes) | {"model_type": "qwen3_moe", "num_experts_per_tok": 2, "head_dim": 64}
    model, _ = built(config, topology_mesh("v5e:2x4", (1, 8, 1, 1)))
    lora = LoRA(r=rank)
    adapt(model, {place.path: (place, lora) for place in targeted(model, lora)})
    summed = [
        one for one in sent_by(model, trace_step(model, placed_shapes(model), 1, 128)) if one.kind == "all-reduce"
    ]
    assert summed != []
    assert as_large_as(VOCAB + 1, summed) == []


@needs_libtpu
def test_scanned_layers_read_and_write_their_caches_where_these_lie():
    """They did so in 3.7 times the time."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    found = []
    for scan in (False, True):
        model, params = built(llama(**sizes), topology_mesh("v5e:2x2", (1, 1, 4, 1)), scan_layers=scan)
        compiled: Any = trace_step(model, params, 8, 8192).lower().compile()
        assert compiled.memory_analysis().temp_size_in_bytes < bytes_on_each(cache_of(model, 8, 8192)) / 32
        found.append(cycles(compiled.as_text()))
    assert found[1] < 1.1 * found[0]


LATENTS = {
    "model_type": "deepseek_v3", "first_k_dense_replace": 2, "q_lora_rank": 64, "kv_lora_rank": 448,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64,
}  # fmt: skip
STATES = {"model_type": "mamba2", "expand": 2, "num_heads": 16, "head_dim": 64, "n_groups": 1, "state_size": 128}
OTHERS = {  # which TPUs lay out in another order; of which a layer writes a part; of which it writes everything
    "keys of 64 channels": llama(hidden_size=512),
    "latents": llama(hidden_size=512) | LATENTS,
    "recurrent states": llama(hidden_size=512) | STATES,
}


@needs_libtpu
@pytest.mark.parametrize("kind", OTHERS)
def test_scanned_layers_copy_no_cache_of_any_kind(kind: str):
    model, params = built(OTHERS[kind], topology_mesh("v5e:2x2", (1, 1, 4, 1)), scan_layers=True)
    cache = cache_of(model, 8, 1024)["layers"]
    largest = max((leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(cache)), key=math.prod)
    own = math.prod(largest[1:])
    made = made_by(trace_step(model, params, 8, 1024).lower().compile().as_text())
    assert any(elements > own for _, elements in made), "the whole cache, which is written in place"
    assert [name for name, elements in made if own / 2 <= elements <= own] == [], "all other are written in place"


@needs_libtpu
def test_a_long_cache_is_split_over_sp_and_stays_so():
    model, params = built(llama(max_position_embeddings=65536), topology_mesh("v5e:2x4", (1, 1, 2, 4)))
    own = bytes_on_each(cache_of(model, 2, 16384))
    assert own < 1.02 * (2 * 2) * (2 * 8 * 16384 * 8 * 2) / 8, "keys and values of 2 layers, over 8 chips"
    compiled = trace_step(model, params, 2, 16384).lower().compile()
    assert as_large_as(8 * VOCAB, collectives(compiled.as_text(), model.policy.mesh.shape)) == []
    assert compiled.memory_analysis().temp_size_in_bytes < own / 2


@needs_libtpu
def test_each_chip_keeps_one_of_fewer_key_and_value_heads_than_chips():
    model, params = built(llama(num_key_value_heads=2, num_hidden_layers=1), topology_mesh("v5e:2x4", (1, 1, 8, 1)))
    assert bytes_on_each(cache_of(model, 8, 256)) < 1.1 * (2 * 8 * 256 * 8 * 2), "keys and values of one head"
    assert as_large_as(4096, sent_by(model, trace_step(model, params, 8, 256))) == [], "less than a chip's keys"


@cache
def _tensor_parallel() -> Any:
    return built(llama(), topology_mesh("v5e:2x4", (1, 1, 8, 1)))


@needs_libtpu
def test_on_a_tpu_one_row_takes_no_longer_than_eight():
    mesh = topology_mesh("v5e:2x2", (1, 1, 4, 1))
    model, params = built(llama(hidden_size=1024, intermediate_size=2048, num_hidden_layers=1), mesh)
    one, eight = (cycles(trace_step(model, params, batch, 128).lower().compile().as_text()) for batch in (1, 8))
    assert one < 1.05 * eight


@needs_libtpu
def test_a_step_reads_fewer_bytes_the_fewer_bits_weights_have():
    """No kernel is unpacked to a copy of its own, or read twice."""
    mesh, sizes = topology_mesh("v5e:2x2", (1, 1, 4, 1)), {"hidden_size": 2048, "intermediate_size": 5632}
    config = llama(**sizes, num_hidden_layers=1, num_attention_heads=16, vocab_size=1024)
    found = []
    for store in (lambda model: None, lambda model: make_int8(model, None), lambda model: make_int4(model, None)):
        model, _ = built(config, mesh)
        store(model)
        found.append(read_from_memory(trace_step(model, placed_shapes(model), 8, 128).lower().compile().as_text()))
    floats, int8, int4 = found
    assert int8 < 0.56 * floats
    assert int4 < 0.33 * floats


@needs_libtpu
def test_an_unknown_topology_is_refused():
    with pytest.raises(ArgumentError, match="v9z:1x1"):
        topology_mesh("v9z:1x1")
