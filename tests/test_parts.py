"""What blocks can be made of runs through cache, scan, mesh and rewind: a stand-in for each idea, whoever uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from easydel import BaseNNXModule
from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ArgumentError
from easydel.generate import PromptCache
from easydel.layers.attention import Attention, Gate, HandOn, Heads, QKNorm, TakeOver, Weights
from easydel.layers.beside import Beside
from easydel.layers.block import Block, BlockLayer, Flow
from easydel.layers.context import Context
from easydel.layers.embed import Embed, Head, Sinusoidal, Transform
from easydel.layers.linear import Embedding, Linear, parameter
from easydel.layers.mamba import Mamba
from easydel.layers.mlp import GLU, MLP
from easydel.layers.moe import MoE, TopK
from easydel.layers.norm import LayerNorm, RMSNorm
from easydel.layers.part import Cached, Handed, Part, empty
from easydel.layers.residual import FromRead, Parallel
from easydel.layers.rope import Rope
from easydel.layers.shared import shared_module
from easydel.ops.attend import Around, Causal, Chunks, Prefix
from easydel.policy import Policy
from easydel.sharding import PartitionAxis, default_rules, make_mesh
from easydel.sharding.placement import shardings
from easydel.tree import bind, flatten, unflatten

# B batch, T tokens of this call, S slots, D model
VOCAB, FEATURES, LENGTH, BATCH = 61, 24, 23, 2
NORM = RMSNorm(1e-5)
HEADS = Heads(4, 2, 6, biased="qv")
ROTATED = Attention(HEADS, Rope(6))
FFN = GLU(20, "silu")
EMBED, HEAD = Embed(), Head(tied=False)
AXES = ("dp", "fsdp", "tp", "sp")

pytestmark = pytest.mark.usefixtures("quick_compilation")


def block(mixer: Part | None, ffn: Part | None = FFN, **more: Any) -> Block:
    return Block(mixer, ffn, attn_in=NORM, ffn_in=NORM, **more)


def decoder(*blocks: Block, **more: Any) -> Decoder:
    own = {"final_norm": NORM, "head": HEAD, "embed": EMBED, "max_length": None} | more
    return Decoder(VOCAB, FEATURES, blocks, **own)


@dataclass(frozen=True)
class EachTimes(Part):
    """Multiplies a projection by what its layer gets for itself."""

    def build(self, features: int, policy: Policy) -> Any:
        return EachTimesLayer(features, policy)


class EachTimesLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        return self.up_proj(x_BTD) * context.each["extra"] + context.entered_BTD, cache


@dataclass(frozen=True)
class Reading(EachTimes):
    def reads(self) -> Iterable[str]:
        return ("entered_BTD",)


@dataclass(frozen=True)
class PerLayerTable:
    def build(self, features: int, layers: int, policy: Policy) -> Any:
        return PerLayerRows(features, layers, policy)


class PerLayerRows(nnx.Module):
    def __init__(self, features: int, layers: int, policy: Policy):
        self.embed_tokens_per_layer = Embedding(VOCAB, layers * features, policy)
        self.layers = layers

    def __call__(self, ids_BT: jax.Array, x_BTD: jax.Array, context: Context) -> dict[str, jax.Array]:
        rows = self.embed_tokens_per_layer(ids_BT).reshape(*ids_BT.shape, self.layers, -1)
        return {"extra": jnp.moveaxis(rows, 2, 0)}


@dataclass(frozen=True)
class Borrowing(Part):
    """A feed-forward that all layers share, before a projection of the layer's own."""

    def build(self, features: int, policy: Policy) -> Any:
        return BorrowingLayer(features, policy)

    def shares(self) -> Iterable[tuple[str, Part]]:
        return (("common", FFN),)


class BorrowingLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.down_proj = Linear(features, features, policy)
        self.features, self.policy = features, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        common = shared_module("common", FFN, self.features, self.policy, context)
        return self.down_proj(common(x_BTD, context, None)[0]), cache


@dataclass(frozen=True)
class Twice:
    """Two streams; layers read their sum."""

    def build(self, features: int, policy: Policy) -> Any:
        return TwiceStream(features, policy)


class TwiceStream(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def open(self, x_BTD: jax.Array) -> Flow:
        return {"x": jnp.stack([x_BTD, self.up_proj(x_BTD)], axis=2)}

    def close(self, flow: Flow) -> jax.Array:
        return flow["x"][:, :, 0] - flow["x"][:, :, 1]


@dataclass(frozen=True)
class WideBlock(Block):
    def build(self, features: int, policy: Policy) -> Any:
        return WideLayer(self, features, policy)


class WideLayer(BlockLayer):
    def __init__(self, record: WideBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.scale = parameter((2, 1), policy)

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        x_BTHD = flow["x"]
        inner, cache = super().__call__({**flow, "x": jnp.sum(x_BTHD, axis=2)}, context, cache)
        return {**inner, "x": x_BTHD + inner["x"][:, :, None] * self.scale[...]}, cache


@dataclass(frozen=True)
class BestKeys(Part):
    """Chooses the `count` keys with the highest scores among those that a query may see; hands the scores on."""

    count: int
    name = "indexer"

    def build(self, features: int, policy: Policy) -> Any:
        return BestKeysLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        return empty((batch, length), jnp.float32, "batch", None)

    def hands_on(self) -> Iterable[str]:
        return ("scores",)


class BestKeysLayer(nnx.Module):
    def __init__(self, record: BestKeys, features: int, policy: Policy):
        self.wk = Linear(features, 1, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Cached | None) -> tuple[Any, Any]:
        scores_BS, offset = self.wk(x_BTD)[..., 0].astype(jnp.float32), context.offset
        if cache is not None:
            scores_BS = jax.lax.dynamic_update_slice_in_dim(cache.array, scores_BS, offset, axis=1)
            cache = replace(cache, array=scores_BS)

        def select(start: Any, queries: int) -> jax.Array:
            slots_T = offset + start + jnp.arange(queries)
            seen_BTS = (jnp.arange(scores_BS.shape[1]) <= slots_T[:, None])[None]
            if context.valid_BS is not None:
                seen_BTS = seen_BTS & context.valid_BS[:, None]
            own_BTS = jnp.where(seen_BTS, scores_BS[:, None], -jnp.inf)
            least_BT1 = jax.lax.top_k(own_BTS, min(self.record.count, own_BTS.shape[-1]))[0][..., -1:]
            return (own_BTS >= least_BT1)[:, None]

        return Handed(select, {"scores": scores_BS}), cache


@dataclass(frozen=True)
class Scoring(Part):
    """A feed-forward that also reads what an indexer before it handed on."""

    def build(self, features: int, policy: Policy) -> Any:
        return ScoringLayer(features, policy)


class ScoringLayer(nnx.Module):
    def __init__(self, features: int, policy: Policy):
        self.up_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        scores_BS, T = context.handed["scores"], x_BTD.shape[1]
        own_BT = jax.lax.dynamic_slice_in_dim(scores_BS, context.offset, T, axis=1)
        return self.up_proj(x_BTD) * own_BT[..., None], cache


MAMBA = Mamba(inner=16, states=3, width=4, dt_rank=2, act="silu")
SELECTING = replace(ROTATED, select=BestKeys(5))
RICH = Attention(
    Heads(4, 2, 6, value_dim=10, biased="qko"),
    Rope(4),
    weights=Weights(value_scale=1.3),
    norms=QKNorm(NORM, values=RMSNorm(1e-5, scaled=False)),
    gate=Gate(),
    out_norm=NORM,
)
SAME = replace(ROTATED, heads=Heads(4, 2, 6, keys_as_values=True), gate=Gate("silu", per_head=True))
ZEROS = MoE(5, MLP(12, "relu2", bias=False), TopK(3), zero=2, latent=10)
INPUTS = MoE(6, FFN, TopK(1, score="sigmoid"), shared=MLP(8, "gelu"), weigh="inputs")
RECORDS: dict[str, Decoder] = {
    "mixers beside each other": decoder(*[block(Beside((ROTATED, MAMBA), (0.7, 1.0), (1.0, 1.4)))] * 5),
    "inputs for every layer": decoder(*[block(ROTATED, Reading())] * 5, per_layer=PerLayerTable()),
    "parts that layers share": decoder(*[block(ROTATED, Borrowing())] * 5, block(ROTATED)),
    "a widened stream": decoder(*[WideBlock(ROTATED, FFN, attn_in=NORM, ffn_in=NORM)] * 5, stream=Twice()),
    "keys handed on": decoder(
        *[block(ROTATED)] * 2,
        block(replace(ROTATED, keys=HandOn("kv"))),
        *[block(replace(ROTATED, keys=TakeOver("kv")))] * 5,
    ),
    "keys of a window handed on": decoder(
        block(replace(ROTATED, keys=HandOn("kv"), sight=Causal(5))),
        *[block(replace(ROTATED, keys=TakeOver("kv"), sight=Causal(5)))] * 5,
    ),
    "keys handed on in every period": decoder(
        *[block(replace(ROTATED, keys=HandOn("kv"))), block(replace(ROTATED, keys=TakeOver("kv")))] * 5
    ),
    "a window": decoder(*[block(replace(ROTATED, sight=Causal(5)))] * 5),
    "chunks": decoder(*[block(replace(ROTATED, sight=Chunks(4)))] * 3, *[block(ROTATED)] * 2),
    "a prefix": decoder(*[block(replace(ROTATED, sight=Prefix()))] * 5),
    "a selection that is handed on": decoder(*[block(SELECTING, Scoring()), block(ROTATED, Scoring())] * 5),
    "gates, norms and wider values": decoder(*[block(RICH, replace(FFN, norm=NORM))] * 5),
    "keys for values": decoder(*[block(SAME)] * 5),
    "experts that do nothing": decoder(*[block(ROTATED, ZEROS)] * 5),
    "experts with weighted inputs": decoder(*[block(ROTATED, INPUTS)] * 5),
    "what is read goes past": decoder(*[block(ROTATED, residual=FromRead(0.5, 2.0))] * 5),
    "another residual for each": decoder(*[block(ROTATED, ffn_residual=FromRead(0.5, 2.0))] * 5),
    "side by side": decoder(*[block(ROTATED, residual=Parallel(0.3))] * 5),
    "waves, types and a transform": decoder(
        *[block(replace(ROTATED, position=None))] * 5,
        embed=Embed(Sinusoidal(2, endpoint=True), LayerNorm(1e-5), 1.5, 16, False, 2, "after", True),
        head=Head(True, bias=True, transform=Transform("gelu", LayerNorm(1e-5), 16)),
    ),
}
# how far back a cache of 200 slots goes after 150 tokens, where it is not all the way
REWINDS = {"mixers beside each other": 0, "a window": 65, "keys of a window handed on": 65, "chunks": 65}
REWINDS |= {"a selection that is handed on": None}


@cache
def loop_params(name: str) -> dict[str, Any]:
    """Random values by path; norms and biases too."""
    model, keys = made(name), np.random.default_rng(len(name))
    return {
        path: jnp.asarray(keys.normal(0, 0.4, leaf.shape), leaf.dtype) for path, leaf in flatten(model.params).items()
    }


@cache
def made(name: str, policy: Policy = Policy()) -> BaseNNXModule:  # noqa: B008 (frozen)
    return BaseNNXModule(RECORDS[name], HFConfig({}), policy)


def with_values(name: str, policy: Policy = Policy()) -> BaseNNXModule:  # noqa: B008 (frozen)
    """The model for `policy`, with the same values whatever that is."""
    model, values = made(name, policy), loop_params(name)

    def value(paths: list[str], leaf: Any) -> jax.Array:
        parts = [values[path] for path in paths]
        return parts[0] if parts[0].shape == leaf.shape else jnp.stack(parts)

    paths, leaves = model.canonical_paths(), flatten(model.params)
    placed = {path: value(paths[path], leaf) for path, leaf in leaves.items()}
    if policy.mesh is not None:
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        where, _ = shardings(shapes, policy.mesh, default_rules(policy.axes), strict=False)
        placed = {path: jax.device_put(leaf, where[path]) for path, leaf in placed.items()}
    bind(model, unflatten(placed))
    return model


def inputs(name: str, rows: int = BATCH) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    ids = np.random.default_rng(5).integers(1, VOCAB, (rows, LENGTH))
    mask = np.ones_like(ids)
    mask[1:, :6] = 0
    more = {"prefix_mask": ((np.arange(LENGTH) < 9) & (mask == 1)).astype(np.int32)} if "prefix" in name else {}
    return ids, mask, more


def logits(model: BaseNNXModule, name: str) -> np.ndarray:
    ids, mask, more = inputs(name)
    return np.where(mask[..., None], model(ids, mask, **more).logits, 0)


@cache
def expected(name: str) -> np.ndarray:
    return logits(with_values(name), name)


def assert_same(ours: Any, theirs: Any) -> None:
    assert np.isfinite(theirs).all()
    assert np.std(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("name", RECORDS)
def test_calls_with_a_cache_equal_one_without(name: str, scan_layers: bool):
    model = with_values(name, Policy(scan_layers=scan_layers))
    ids, mask, more = inputs(name)
    parts, cache, start = [], model.init_cache(BATCH, LENGTH), 0
    for size in (12, 5, *[1] * (LENGTH - 17)):  # the whole prefix comes first: what is read cannot see it later
        part = slice(start, start + size)
        own = {key: value[:, part] for key, value in more.items()}
        out = model(ids[:, part], mask[:, part], cache=cache, **own)
        cache, start = out.cache, start + size
        parts.append(out.logits)
    assert_same(np.where(mask[..., None], jnp.concatenate(parts, axis=1), 0), expected(name))


@pytest.mark.parametrize("name", RECORDS)
def test_scanned_layers_equal_a_loop_also_in_gradients(name: str):
    ids, mask, more = inputs(name)

    def gradient(policy: Policy) -> dict[str, Any]:
        model = with_values(name, policy)
        weights = np.random.default_rng(1).normal(size=(*ids.shape, VOCAB)) * mask[..., None]
        by = jax.grad(lambda params: jnp.sum(model.apply(params, ids, mask, **more).logits * weights))(model.params)
        flat = flatten(by)
        return {path: (flat[path], names) for path, names in model.canonical_paths().items()}

    looped = {path: leaf for path, (leaf, _) in gradient(Policy()).items()}
    assert_same(logits(with_values(name, Policy(scan_layers=True)), name), expected(name))
    for leaf, names in gradient(Policy(scan_layers=True, remat="everything")).values():
        parts = [looped[one] for one in names]
        own = parts[0] if parts[0].shape == leaf.shape else jnp.stack(parts)
        np.testing.assert_allclose(leaf, own, atol=1e-4 * float(jnp.abs(own).max() + 1e-3), rtol=0)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_mesh_gives_what_one_device_gives(name: str, scan_layers: bool):
    axes = PartitionAxis().resolve(AXES)
    policy = Policy(mesh=make_mesh((1, 2, 2, 2), AXES), axes=axes, scan_layers=scan_layers)
    model = with_values(name, policy)
    assert_same(logits(model, name), expected(name))
    ids = inputs(name)[0]
    tokens = model.generate(ids, max_new_tokens=6, eos_token_id=None).sequences
    np.testing.assert_array_equal(
        tokens, with_values(name).generate(ids, max_new_tokens=6, eos_token_id=None).sequences
    )


@pytest.mark.parametrize("name", RECORDS)
def test_generated_tokens_are_those_of_whole_passes(name: str):
    """Prompts are read layer by layer, and each layer gets what belongs to it."""
    model, ids = with_values(name), inputs(name)[0]
    said = ids
    for _ in range(5):
        said = np.concatenate([said, np.argmax(model(said).logits[:, -1:], axis=-1)], axis=1)
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=5, eos_token_id=None).sequences, said)


@pytest.mark.parametrize("name", RECORDS)
def test_a_conversation_goes_back_as_far_as_every_part_can(name: str):
    model = with_values(name)
    assert model.record.rewinds(200, 150) == REWINDS.get(name)
    kept, said = PromptCache(), inputs(name, 1)[0]
    more: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    said = model.generate(said, prompt_cache=kept, **more).sequences
    said = np.concatenate([said[:, :-3], [[7, 8]]], axis=1)
    np.testing.assert_array_equal(
        model.generate(said, prompt_cache=kept, **more).sequences, model.generate(said, **more).sequences
    )
    assert kept.reused == (0 if REWINDS.get(name) == 0 else said.shape[1] - 2)


def seen_by(record: Attention, **masks: Any) -> np.ndarray:
    """[T, T]: on which tokens' inputs each token's output depends, in one layer of attention."""
    name, T = f"one layer {record}", 11
    RECORDS[name] = decoder(Block(record, None), final_norm=None)
    model = with_values(name)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(T, FEATURES)), jnp.float32)
    layer = model.model.layers[0]
    context = Context(jnp.arange(T)[None], **masks).with_angles(record.ropes())
    jacobian = jax.jacobian(lambda x: layer({"x": x[None]}, context, None)[0]["x"][0])(rows)
    del RECORDS[name]
    return np.abs(np.asarray(jacobian)).max(axis=(1, 3)) > 0


SIGHTS: dict[str, tuple[Any, Callable[[int, int], bool]]] = {
    "causal": (Causal(), lambda t, s: s <= t),
    "window": (Causal(3), lambda t, s: t - 3 < s <= t),
    "chunks": (Chunks(4), lambda t, s: s <= t and s // 4 == t // 4),
    "around": (Around(), lambda t, s: True),
    "around, limited": (Around(2, 1), lambda t, s: t - 2 <= s <= t + 1),
    "around, limited ahead": (Around(None, 2), lambda t, s: s <= t + 2),
    "prefix": (Prefix(), lambda t, s: s <= t or (s < 5 and t < 5)),
}


@pytest.mark.parametrize("name", SIGHTS)
def test_a_token_depends_on_those_that_its_sight_says(name: str):
    sight, sees = SIGHTS[name]
    masks = {"prefix_BS": jnp.arange(11)[None] < 5} if name == "prefix" else {}
    wanted = [[sees(t, s) for s in range(11)] for t in range(11)]
    np.testing.assert_array_equal(seen_by(Attention(HEADS, Rope(6), sight), **masks), wanted)


def test_a_chunk_begins_anew_with_each_row_and_document():
    """Chunks are those of a token's position: padding and packed documents move where they begin."""
    name = "chunks"
    model, (ids, mask, _) = with_values(name), inputs(name)
    alone = model(ids[1:, 6:]).logits
    assert_same(model(ids, mask).logits[1:, 6:], alone)
    packed = np.concatenate([ids[:1, :7], ids[1:, 6:]], axis=1)
    segments = np.repeat([[0, 1]], [7, LENGTH - 6], axis=1)
    assert_same(model(packed, segment_ids=segments).logits[:, 7:], alone)


def test_inputs_that_a_model_has_no_use_for_are_refused():
    ids = inputs("a window")[0]
    for name in ("prefix_mask", "token_type_ids"):
        with pytest.raises(ArgumentError, match=f"takes no {name}"):
            with_values("a window")(ids, **{name: np.zeros_like(ids)})
