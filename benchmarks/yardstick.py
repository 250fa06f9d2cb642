"""A training step of a Llama in plain JAX, as one writes it by hand for FSDP on a TPU: what tpu.py compares ours with.

Kernels are [in, out] and stacked by layer, layers run in a scan and are recomputed whole in the backward pass,
attention is the splash kernel, the loss is summed over groups of tokens with the head gathered once, the optimizer is
AdamW.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    make_splash_mha_single_device,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

# B batch, T tokens, D model, N heads, K kv heads, C head channels, V vocabulary
GROUP = 512  # tokens of a row whose logits exist at a time
BLOCK = 512  # queries and keys of which the kernel has scores at a time
BF16 = jnp.bfloat16


def parameters(c: dict[str, Any], mesh: Mesh) -> Any:
    """Returns shapes of float32 parameters, the model dimension split over fsdp."""
    D, F, L, V = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["vocab_size"]
    kv = D // c["num_attention_heads"] * c["num_key_value_heads"]

    def of(*shape: int, split: int) -> jax.ShapeDtypeStruct:
        spec = P(*("fsdp" if dim == split else None for dim in range(len(shape))))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    inward = {"q": D, "k": kv, "v": kv, "gate": F, "up": F}
    layers = {name: of(L, D, size, split=1) for name, size in inward.items()}
    layers |= {name: of(L, size, D, split=2) for name, size in {"o": D, "down": F}.items()}
    layers |= {name: of(L, D, split=1) for name in ("attention_norm", "mlp_norm")}
    return {"layers": layers, "norm": of(D, split=0), "words": of(V, D, split=1), "head": of(D, V, split=0)}


def loss(c: dict[str, Any], mesh: Mesh, params: Any, ids_BT: jax.Array) -> jax.Array:
    """Returns the mean negative log likelihood of each token after the first."""
    rows = NamedSharding(mesh, P("fsdp", None, None))
    eps, N, K = c["rms_norm_eps"], c["num_attention_heads"], c["num_key_value_heads"]
    B, T = ids_BT.shape
    half = c["hidden_size"] // N // 2
    angles_TC = jnp.arange(T)[:, None] * c["rope_theta"] ** (-jnp.arange(half) / half)
    cos_TC, sin_TC = jnp.cos(angles_TC)[:, None], jnp.sin(angles_TC)[:, None]
    attention = jax.shard_map(partial(attend, N), mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * weight).astype(BF16)

    def rotate(x_BTNC: jax.Array) -> jax.Array:
        one, two = jnp.split(x_BTNC.astype(jnp.float32), 2, -1)
        return jnp.concatenate([one * cos_TC - two * sin_TC, two * cos_TC + one * sin_TC], -1).astype(BF16)

    def layer(x_BTD: jax.Array, w: Any) -> tuple[jax.Array, None]:
        kernels = {name: weight.astype(BF16) for name, weight in w.items() if weight.ndim == 2}
        h = norm(x_BTD, w["attention_norm"])
        q = rotate((h @ kernels["q"]).reshape(B, T, N, -1)) * (2 * half) ** -0.5
        k = rotate((h @ kernels["k"]).reshape(B, T, K, -1))
        v = (h @ kernels["v"]).reshape(B, T, K, -1)
        out = attention(*(part.astype(BF16).swapaxes(1, 2) for part in (q, k, v)))
        x_BTD = x_BTD + out.swapaxes(1, 2).reshape(B, T, -1) @ kernels["o"]
        h = norm(x_BTD, w["mlp_norm"])
        x_BTD = x_BTD + (jax.nn.silu(h @ kernels["gate"]) * (h @ kernels["up"])) @ kernels["down"]
        return jax.lax.with_sharding_constraint(x_BTD, rows), None

    look_up = jax.shard_map(
        rows_of, mesh=mesh, in_specs=(P(None, "fsdp"), P("fsdp")), out_specs=P("fsdp"), check_vma=False
    )
    x_BTD = look_up(params["words"], ids_BT)
    x_BTD, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x_BTD, params["layers"])
    x_BTD = norm(x_BTD, params["norm"])
    sums = jax.shard_map(summed, mesh=mesh, in_specs=(P("fsdp"), P("fsdp"), P("fsdp")), out_specs=P(), check_vma=False)
    return sums(params["head"].astype(BF16), x_BTD, jnp.roll(ids_BT, -1, 1)) / (B * T)


def rows_of(words_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Returns the vectors of this chip's tokens: the table stays, each chip looks up its columns for all tokens."""
    ids_BT = jax.lax.all_gather(ids_BT, "fsdp", tiled=True)
    return jax.lax.all_to_all(words_VD[ids_BT].astype(BF16), "fsdp", 0, 2, tiled=True)


def attend(heads: int, q_BNTC: jax.Array, k_BKTC: jax.Array, v_BKTC: jax.Array) -> jax.Array:
    length = q_BNTC.shape[2]
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": BLOCK for name in names}
    mask = MultiHeadMask([CausalMask((length, length))] * heads)
    kernel: Any = make_splash_mha_single_device(mask, block_sizes=BlockSizes(**sizes))
    return jax.vmap(kernel)(q_BNTC, k_BKTC, v_BKTC)


def summed(head_DV: jax.Array, x_BTD: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Returns the sum over all tokens of all chips; the head's gradient is summed here, and scattered once."""
    head_DV = jax.lax.all_gather(head_DV, "fsdp", tiled=True)

    @jax.checkpoint
    def group(total: jax.Array, own: Any) -> tuple[jax.Array, None]:
        x_BTD, labels_BT = own
        logits_BTV = jnp.dot(x_BTD, head_DV, preferred_element_type=jnp.float32)
        return total + optax.softmax_cross_entropy_with_integer_labels(logits_BTV, labels_BT).sum(), None

    def grouped(part: jax.Array) -> jax.Array:
        return part.reshape(len(part), -1, GROUP, *part.shape[2:]).swapaxes(0, 1)

    total, _ = jax.lax.scan(group, jnp.float32(0), (grouped(x_BTD), grouped(labels_BT)))
    return jax.lax.psum(total, "fsdp")


def trace_training(c: dict[str, Any], mesh: Mesh, batch: int, length: int) -> tuple[jax.stages.Traced, Any]:
    """Returns the step, and its parameters and moments as shapes."""
    params = parameters(c, mesh)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    split = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
    whole = NamedSharding(mesh, P())
    moments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split.get(leaf.shape, whole)),
        jax.eval_shape(optimizer.init, params),
    )

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, moments: Any, ids_BT: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(partial(loss, c, mesh))(params, ids_BT)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))
    return step.trace(params, moments, ids), {"parameters": params, "moments": moments}
