"""Feed-forwards of experts in the forms of several families: layers that have them, and dense ones beside them."""

from collections.abc import Sequence

from easydel.families._layers import checked_types
from easydel.families._parts import GLU, Fused, Groups, HFConfig, MoE, Part, TopK

# Beside routed experts, PEFT 0.21 takes these modules of any MLP for parts of fused experts (its
# utils/transformers_weight_conversion.py): it puts adapters on the experts instead, and warns of missing keys at most.
FUSED_BY_PEFT = ("gate_proj", "up_proj", "down_proj")
CORRECTED = {"gate.correction_bias": "gate.e_score_correction_bias"}
# Experts as transformers' modules hold them: one parameter for all, with the gates above what they gate.
STACKED = {r"experts\.(gate_up_proj|down_proj)\.weight": r"experts.\1"}
GATES = Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"))


def experts(c: HFConfig, router: TopK, *, bias: bool = False) -> MoE:
    """Returns DeepSeek's experts: the shared ones are one of their total size, and only they may have a `bias`."""
    size = c.moe_intermediate_size
    expert, shared = GLU(size, c.hidden_act), size * (c.get("n_shared_experts") or 0)
    return MoE(c.n_routed_experts, expert, router, GLU(shared, c.hidden_act, bias) if shared else None)


def after_first(c: HFConfig, router: TopK, *, bias: bool = False) -> list[Part]:
    """Returns a list with `experts` in every `moe_layer_freq`-th layer from `first_k_dense_replace` on."""
    sparse, dense = experts(c, router, bias=bias), GLU(c.intermediate_size, c.hidden_act, bias)
    first, step = c.first_k_dense_replace, c.get("moe_layer_freq", 1)
    return [sparse if i >= first and i % step == 0 else dense for i in range(c.num_hidden_layers)]


def by_type(c: HFConfig, sparse: Part, dense: Part, first: int = 0, default: Sequence[str] = ()) -> list[Part]:
    """Returns `sparse` or `dense` for each layer, as `mlp_layer_types` says.

    Without it, as the list `default` says; without that, the `first` ones are dense.
    """
    default = default or ["dense" if i < first else "sparse" for i in range(c.num_hidden_layers)]
    kinds = checked_types(c, "mlp_layer_types", c.get("mlp_layer_types") or default, ("dense", "sparse"))
    return [sparse if kind == "sparse" else dense for kind in kinds]


def corrected_router(c: HFConfig) -> TopK:
    """Returns DeepSeek-V3's router: sigmoids, corrected to spread the load."""
    c.only("scoring_func", "sigmoid", "noaux_tc")  # "noaux_tc" is the name in files of dots.llm1
    c.only("topk_method", "noaux_tc")
    groups = Groups(c.n_group, c.topk_group, best=2) if c.n_group else None
    scale = c.get("routed_scaling_factor", 1.0)
    return TopK(c.num_experts_per_tok, c.norm_topk_prob, scale, "sigmoid", True, groups)


def in_steps(c: HFConfig, shared: GLU | None = None) -> list[Part]:
    """Returns Qwen's list: experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`, else dense."""
    dense, expert = GLU(c.intermediate_size, c.hidden_act), GLU(c.moe_intermediate_size, c.hidden_act)
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    sparse = MoE(c.num_experts, expert, router, shared, shared_gate=shared is not None)
    step, only = c.decoder_sparse_step, c.mlp_only_layers or ()
    return [dense if i in only or (i + 1) % step else sparse for i in range(c.num_hidden_layers)]
