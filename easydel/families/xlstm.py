"""xLSTM (Beck et al. 2025, arXiv:2503.13427): heads with a matrix of memory, which gates fill and empty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families._parts import (
    GLU,
    Block,
    ConfigError,
    Decoder,
    Head,
    HFConfig,
    LayerNorm,
    Names,
    Part,
    RMSNorm,
    family,
)
from easydel.layers.context import Context
from easydel.layers.linear import Float32Linear, Linear
from easydel.layers.part import empty
from easydel.layers.recurrent import attended, kept
from easydel.ops.mlstm import NOTHING, Gated, matrix_memory
from easydel.policy import Policy

# B batch, T length, D model, N heads, K key channels, V value channels, E all heads' value channels
NAMES = Names(
    {
        r"model\.embed_tokens": "backbone.embeddings",
        r"model\.layers": "backbone.blocks",
        r"model\.norm": "backbone.out_norm",
        "input_layernorm": "norm_mlstm",
        "post_attention_layernorm": "norm_ffn",
        "mixer": "mlstm_layer",
        r"in_proj_([qkv])": r"\1",
        "in_proj_o": "ogate_preact",
        "in_proj_i": "igate_preact",
        "in_proj_f": "fgate_preact",
        r"mixer\.norm": "mlstm_layer.multihead_norm",
        "mlp": "ffn",
        "gate_proj": "proj_up_gate",
        "up_proj": "proj_up",
        "down_proj": "proj_down",
    },
    reshaped=dict.fromkeys(("multihead_norm", "multihead_norm.bias"), lambda shape: (math.prod(shape),)),
    prefix="backbone",
)
KERNELS = ("chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size", "max_inference_chunksize")
INERT = dict.fromkeys((*KERNELS, "return_last_states"), "how many tokens are computed at once")
MEMORY = ("memory", "weight", "exponent")
PRECISIONS = ("norm_reduction_force_float32", "autocast_kernel_dtype", "inference_state_dtype")
INERT |= dict.fromkeys(PRECISIONS, "float32 always")


@dataclass(frozen=True)
class MatrixMemory(Part):
    """`heads` with memories of `keys` times `values` channels. Gates are capped to `cap`; `norm` is each head's own."""

    name: ClassVar[str] = "mixer"
    heads: int
    keys: int
    values: int
    cap: float
    norm: LayerNorm
    eps: float
    bias: bool = False

    def carries(self, tokens: int) -> str:
        return "xLSTM"

    def build(self, features: int, policy: Policy) -> MatrixMemoryLayer:
        return MatrixMemoryLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns the memory, in float32 as it is computed."""
        shape = (batch, self.heads, self.keys, self.values)
        return {
            "memory": empty(shape, jnp.float32, "batch", "head", None, None),
            "weight": empty(shape[:3], jnp.float32, "batch", "head", None),
            "exponent": empty(shape[:2], jnp.float32, "batch", "head"),
        }


class MatrixMemoryLayer(nnx.Module):
    def __init__(self, record: MatrixMemory, features: int, policy: Policy):
        keys, values = record.heads * record.keys, record.heads * record.values
        for name, size in {"q": keys, "k": keys, "v": values}.items():
            setattr(self, f"in_proj_{name}", Linear(features, size, policy, bias=record.bias))
        self.in_proj_o = Linear(features, values, policy, bias=record.bias)
        self.in_proj_i = Float32Linear(features, record.heads, policy, bias=True)
        self.in_proj_f = Float32Linear(features, record.heads, policy, bias=True)
        self.norm = record.norm.build((record.heads, record.values), policy)
        self.out_proj = Linear(values, features, policy, bias=record.bias)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record = self.record
        q_BTNK, k_BTNK, v_BTNV = (self._heads(getattr(self, f"in_proj_{name}")(x_BTD)) for name in "qkv")
        input_BTN, forget_BTN = (self._capped(gate(x_BTD)) for gate in (self.in_proj_i, self.in_proj_f))
        if context.valid_BT is not None:
            input_BTN = jnp.where(context.valid_BT[..., None], input_BTN, NOTHING)
        forget_BTN = attended(jax.nn.log_sigmoid(forget_BTN), context)
        tokens = Gated(q_BTNK * record.keys**-0.5, k_BTNK, v_BTNV, input_BTN, forget_BTN)
        own = record.cache(len(x_BTD), 0, self.policy.dtype) if cache is None else cache
        c_BNKV, n_BNK, m_BN = (own[name].array for name in MEMORY)
        y_BTNV, memory = matrix_memory(tokens, (c_BNKV, n_BNK, m_BN), record.eps)
        y_BTE = self.norm(y_BTNV).reshape(*x_BTD.shape[:2], -1).astype(self.policy.dtype)
        y_BTD = self.out_proj(y_BTE * jax.nn.sigmoid(self.in_proj_o(x_BTD)))
        return y_BTD, kept(cache, **dict(zip(MEMORY, memory, strict=True)))

    def _capped(self, gate_BTN: jax.Array) -> jax.Array:
        return self.record.cap * jnp.tanh(gate_BTN / self.record.cap)

    def _heads(self, x_BTE: jax.Array) -> jax.Array:
        """[B, T, N, C], split by heads, and not by tokens: the recurrence goes through all of them in order."""
        x_BTNC = x_BTE.astype(jnp.float32).reshape(*x_BTE.shape[:2], self.record.heads, -1)
        return self.policy.shard(x_BTNC, *self.policy.logical_axes(("batch", None, "head", None)))


@family("xlstm", NAMES, inert=INERT)
def xlstm(c: HFConfig) -> Decoder:
    features, heads, bias = c.hidden_size, c.num_heads, c.use_bias
    c.only("weight_mode", "single")
    c.only("embedding_dim", None, features)
    c.only("tie_word_embeddings", False)  # transformers never ties them
    c.only("add_out_norm", True)
    keys, values = int(features * c.qk_dim_factor), int(features * c.v_dim_factor)
    if keys % heads or values % heads:
        raise ConfigError(f"{keys} key and {values} value channels cannot stand in num_heads={heads}")
    norm, unit = RMSNorm(c.norm_eps, biased=bias), c.ffn_round_up_to_multiple_of
    own = LayerNorm(c.norm_eps, biased=bias)
    mixer = MatrixMemory(heads, keys // heads, values // heads, c.gate_soft_cap, own, c.eps, bias)
    ffn = GLU(int((features * c.ffn_proj_factor + unit - 1) // unit * unit), "silu", bias)
    layers = c.num_hidden_layers
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm)] * (c.get("num_blocks") or layers)
    head = Head(tied=False, softcap=c.output_logit_soft_cap)
    return Decoder.from_hf(c, blocks=blocks, final_norm=RMSNorm(c.norm_eps), head=head)
