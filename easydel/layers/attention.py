"""Multi-head attention with grouped keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.kv_cache import Seen, empty_keys, reachable, update
from easydel.layers.linear import Linear, exact
from easydel.layers.norm import AnyNorm, Norm
from easydel.layers.part import Handed, HeadSizes, Part, handing, received
from easydel.layers.position import ALiBi, Blocks, GrowingScale
from easydel.layers.relative import RelativeBias
from easydel.layers.rope import Rope
from easydel.layers.shared import shared_module
from easydel.ops.attend import Bias, Causal, Prefix, Scores, Select, Sight, attend
from easydel.ops.sight import is_causal, reach
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T tokens of this call, S key slots, D model, N heads, K kv heads, C head channels, V value channels


@dataclass(frozen=True)
class Heads:
    """`count` query heads over `kv` key and value heads, with `dim` channels each (`value_dim` in values, if given).

    `biased` names the projections with a bias, some of "qkvo". With `keys_as_values` there is no projection to values.
    """

    count: int
    kv: int
    dim: int
    value_dim: int | None = None
    biased: str = ""
    keys_as_values: bool = False

    @property
    def values(self) -> int:
        """Channels of a value head."""
        return self.dim if self.value_dim is None else self.value_dim


@dataclass(frozen=True)
class Weights:
    """The way from scores to weights: `scale` (default: dim ** -0.5), tanh `softcap`, and `sinks`, a logit per head.

    A sink is learned, and takes weight but adds no value (GPT-OSS). `value_scale` multiplies the values.
    """

    scale: float | GrowingScale | None = None
    softcap: float | None = None
    sinks: bool = False
    value_scale: float = 1.0


@dataclass(frozen=True)
class QKNorm:
    """Norms on queries and keys: over each head's channels, or (`whole`) over all heads at once (OLMo 2).

    All heads use one scale, unless `per_head` gives each its own (Cohere). With `rotated` the norms follow the rope
    (Hunyuan). `values` is a norm over each value head's channels.
    """

    norm: AnyNorm
    whole: bool = False
    per_head: bool = False
    rotated: bool = False
    values: AnyNorm | None = None

    def build(self, heads: int, head_dim: int, policy: Policy) -> Norm:
        if self.whole:
            return self.norm.build(heads * head_dim, policy)
        return self.norm.build((heads, head_dim) if self.per_head else head_dim, policy)


@dataclass(frozen=True)
class Gate:
    """A gate on the attention's output: `act` of a projection of the layer's input, per channel or per head."""

    act: str = "sigmoid"
    per_head: bool = False
    bias: bool = False


@dataclass(frozen=True)
class HandOn:
    """Hands this layer's keys and values on to later layers, as `name`."""

    name: str


@dataclass(frozen=True)
class TakeOver:
    """Uses the keys and values that an earlier layer handed on as `name`; the layer has no projections to them."""

    name: str


@dataclass(frozen=True)
class Attention(Part):
    """Softmax attention.

    Without a `position`, order comes from the sight alone (NoPE) or from embeddings added before the first layer.
    `clip` limits q, k and v to [-clip, clip] (DBRX, OLMo). `out_norm` acts on all heads together, before the output
    projection. `select` is a part that chooses keys for each query: its module returns a `Select` as its output.
    """

    name: ClassVar[str] = "self_attn"
    heads: Heads
    position: Rope | ALiBi | Blocks | RelativeBias | None = None
    sight: Sight = Causal()
    weights: Weights = Weights()
    norms: QKNorm | None = None
    clip: float | None = None
    gate: Gate | None = None
    out_norm: AnyNorm | None = None
    keys: HandOn | TakeOver | None = None
    select: Part | None = None

    def build(self, features: int, policy: Policy) -> AttentionLayer:
        return AttentionLayer(self, features, policy)

    @property
    def kept_window(self) -> int | None:
        """Number of past tokens that a cache has to keep (None: all). Biases and selections need every slot."""
        plain = isinstance(self.position, Rope | None) and self.select is None
        return reach(self.sight) if plain else None

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any] | None:
        """Returns empty keys and values, [batch, kv_heads, places, channels] each."""
        heads = self.heads
        if isinstance(self.keys, TakeOver):
            return None
        own = empty_keys(batch, length, heads.kv, (heads.dim, heads.values), self.kept_window, dtype)
        return own if self.select is None else own | {"select": self.select.cache(batch, length, dtype)}

    def ropes(self) -> Iterable[Rope]:
        if isinstance(self.position, Rope):
            yield self.position
        if self.select is not None:
            yield from self.select.ropes()

    def head_sizes(self) -> Iterable[HeadSizes]:
        window = None if self.sight.before is None else self.sight.before + 1
        return (HeadSizes(self.heads.count, self.heads.kv, self.heads.dim, window),)

    def repeats_keys(self) -> bool:
        return type(self) is Attention and self.select is None

    def shares(self) -> Iterable[tuple[str, Part]]:
        if isinstance(self.position, RelativeBias) and self.position.shared is not None:
            yield self.position.shared, self.position

    def hands_on(self) -> Iterable[str]:
        if isinstance(self.keys, HandOn):
            yield self.keys.name
        if self.select is not None:
            yield from self.select.hands_on()

    def reads(self) -> Iterable[str]:
        if isinstance(self.sight, Prefix):
            yield "prefix_BS"
        if self.select is not None:
            yield from self.select.reads()

    def looks_ahead(self) -> bool:
        return not is_causal(self.sight) and not isinstance(self.sight, Prefix)

    def rewinds(self, length: int, end: int) -> int | None:
        return reachable(length, self.kept_window, end)


class AttentionLayer(nnx.Module):
    def __init__(self, record: Attention, features: int, policy: Policy):
        heads, norms, gate = record.heads, record.norms, record.gate
        wide, narrow = heads.count * heads.dim, heads.kv * heads.dim
        out, takes_over = heads.count * heads.values, isinstance(record.keys, TakeOver)
        self.q_proj = Linear(features, wide, policy, bias="q" in heads.biased)
        if not takes_over:
            self.k_proj = Linear(features, narrow, policy, bias="k" in heads.biased)
        if not takes_over and not heads.keys_as_values:
            self.v_proj = Linear(features, heads.kv * heads.values, policy, bias="v" in heads.biased)
        self.o_proj = Linear(out, features, policy, bias="o" in heads.biased)
        if norms is not None:
            self.q_norm = norms.build(heads.count, heads.dim, policy)
            self.k_norm = None if takes_over else norms.build(heads.kv, heads.dim, policy)
            self.v_norm = None if takes_over or norms.values is None else norms.values.build(heads.values, policy)
        if gate is not None:
            self.gate_proj = Linear(features, heads.count if gate.per_head else out, policy, bias=gate.bias)
        self.out_norm = None if record.out_norm is None else record.out_norm.build(out, policy)
        if isinstance(record.position, RelativeBias) and record.position.shared is None:
            self.relative_attention_bias = record.position.build(features, policy)
        if record.select is not None:
            setattr(self, record.select.name, record.select.build(features, policy))
        sinks = exact((heads.count,), policy)
        self.sinks = sinks if record.weights.sinks else None
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        record = self.record
        q_BTNC = self._queries(x_BTD, context)
        select, kept, chosen = self._selection(x_BTD, context, None if cache is None else cache.get("select"))
        seen, cache = self._seen(x_BTD, context, cache)
        out_BTNV = attend(
            q_BTNC,
            seen.k_BKSC,
            seen.v_BKSC,
            self._scores(seen.scores.sight),
            **seen.masks(),
            bias=self._bias(context, seen),
            select=select,
            sinks_N=None if self.sinks is None else self.sinks[...],
            mesh=self.policy.mesh,
            ring=self.policy.ring,
        )
        out_BTNV = checkpoint_name(self.policy.shard_heads(out_BTNV), ATTENTION_OUTPUT)
        y_BTD = self.o_proj(self._finished(x_BTD, out_BTNV))
        values = chosen | ({record.keys.name: replace(seen, stacks=None)} if isinstance(record.keys, HandOn) else {})
        cache = cache if cache is None or record.select is None else cache | {"select": kept}
        return handing(y_BTD, values), cache

    def _queries(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """Returns queries [B, T, N, C], rotated and normed."""
        record, scale = self.record, self.record.weights.scale
        q_BTNC = self._heads(self.q_proj(x_BTD), self.q_norm if record.norms else None, context)
        if isinstance(scale, GrowingScale):
            q_BTNC = q_BTNC * scale.factors(context.positions_BT)[..., None, None].astype(q_BTNC.dtype)
        return q_BTNC

    def _seen(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[Seen, Any]:
        """Returns the keys and values to attend to, this layer's own or an earlier layer's, and the new cache."""
        record, heads, norms = self.record, self.record.heads, self.record.norms
        if isinstance(record.keys, TakeOver):
            return context.handed[record.keys.name], cache
        k_BTE = self.k_proj(x_BTD)
        v_BTE = k_BTE if heads.keys_as_values else self.v_proj(x_BTD)
        k_BTKC = self._heads(k_BTE, self.k_norm if norms else None, context, kv=True)
        v_BTE = v_BTE if record.clip is None else jnp.clip(v_BTE, -record.clip, record.clip)
        v_BTKV = v_BTE.reshape(*v_BTE.shape[:2], -1, heads.values)
        if norms is not None and self.v_norm is not None:
            v_BTKV = self.v_norm(v_BTKV)
        if record.weights.value_scale != 1.0:
            v_BTKV = v_BTKV * record.weights.value_scale
        v_BTKV = self.policy.shard_heads(v_BTKV, kv=True)
        k_BTKC, v_BTKV = self._repeated(k_BTKC), self._repeated(v_BTKV)
        sight, T = self._sight(context), x_BTD.shape[1]
        starts_BT = sight.starts(context.offset + jnp.arange(T), context.positions_BT)
        starts_BT = context.starts_BT if starts_BT is None else starts_BT
        own = None if cache is None else {name: cache[name] for name in "kv"}
        k_BKTC, v_BKTV = k_BTKC.swapaxes(1, 2), v_BTKV.swapaxes(1, 2)
        cache, seen = update(own, k_BKTC, v_BKTV, context, self._scores(sight), starts_BT)
        return seen, cache

    def _heads(self, x_BTE: jax.Array, norm: Norm | None, context: Context, *, kv: bool = False) -> jax.Array:
        """Returns queries or keys [B, T, heads, C], clipped, normed and rotated."""
        record, norms = self.record, self.record.norms
        if norms is not None and norm is not None and norms.whole:
            x_BTE = norm(x_BTE)
        if record.clip is not None:
            x_BTE = jnp.clip(x_BTE, -record.clip, record.clip)
        x_BTNC = x_BTE.reshape(*x_BTE.shape[:2], -1, record.heads.dim)
        if norms is not None and norm is not None and not norms.whole and not norms.rotated:
            x_BTNC = norm(x_BTNC)
        x_BTNC = self.policy.shard_heads(x_BTNC, kv=kv)
        if isinstance(record.position, Rope):
            x_BTNC = record.position.rotate(x_BTNC, context.angles(record.position))
        return norm(x_BTNC) if norms is not None and norm is not None and norms.rotated else x_BTNC

    def _repeated(self, x_BTKC: jax.Array) -> jax.Array:
        """Returns keys or values with a copy of each head for each of the devices that share it."""
        copies = self.policy.kv_copies(x_BTKC.shape[2]) if self.record.repeats_keys() else 1
        return x_BTKC if copies == 1 else self.policy.shard_heads(jnp.repeat(x_BTKC, copies, axis=2), kv=True)

    def _scores(self, sight: Sight) -> Scores:
        weights = self.record.weights
        scale = weights.scale.start if isinstance(weights.scale, GrowingScale) else weights.scale
        scale = self.record.heads.dim**-0.5 if scale is None else scale
        return Scores(scale, weights.softcap, sight, self.policy.precision)

    def _sight(self, context: Context) -> Sight:
        """Returns the sight to attend with; where a prefix is given, `_selection` masks what is not seen."""
        sight = self.record.sight
        return Causal() if isinstance(sight, Prefix) and context.prefix_BS is None else sight

    def _selection(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[Select | None, Any, dict[str, Any]]:
        """Returns the choice of keys for each query, the chooser's new cache, and the values it hands on."""
        record = self.record
        if record.select is None:
            prefixed = isinstance(record.sight, Prefix) and context.prefix_BS is not None
            return prefix_select(context) if prefixed else None, None, {}
        result, cache = getattr(self, record.select.name)(x_BTD, context, cache)
        select, values = received(result)
        return select, cache, values

    def _bias(self, context: Context, seen: Seen) -> Bias | None:
        position, slots = self.record.position, seen.k_BKSC.shape[2]
        if isinstance(position, ALiBi | Blocks):
            return position.bias(context, slots)
        if not isinstance(position, RelativeBias):
            return None
        if position.shared is None:
            return self.relative_attention_bias(slots, context.offset)
        return shared_module(position.shared, context)(slots, context.offset)

    def _finished(self, x_BTD: jax.Array, out_BTNV: jax.Array) -> jax.Array:
        """Returns the heads' outputs side by side, gated and normed."""
        gate, (B, T) = self.record.gate, x_BTD.shape[:2]
        if gate is not None:
            gates_BTNV = activation(gate.act)(self.gate_proj(x_BTD)).reshape(B, T, out_BTNV.shape[2], -1)
            out_BTNV = out_BTNV * gates_BTNV
        out_BTE = out_BTNV.reshape(B, T, -1)
        return out_BTE if self.out_norm is None else self.out_norm(out_BTE)


def prefix_select(context: Context) -> Select:
    """Returns a selection that is causal, except that all tokens of a row's prefix see each other."""
    prefix_BS = context.prefix_BS
    assert prefix_BS is not None

    def select(start: jax.Array | int, queries: int) -> jax.Array:
        slots_T = context.offset + start + jnp.arange(queries)
        own_BT = jnp.take(prefix_BS, slots_T, axis=1)
        seen_TS = slots_T[:, None] >= jnp.arange(prefix_BS.shape[1])
        return (seen_TS | (own_BT[:, :, None] & prefix_BS[:, None]))[:, None]

    return select
