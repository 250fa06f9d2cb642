"""CodeGen (Nijkamp et al. 2022, arXiv:2203.13474): GPT-J whose queries, values and keys are fused in four groups."""

from easydel.families import gptj
from easydel.families._parts import Decoder, Fused, HFConfig, family, grouped

# four groups, for the four TPU cores that it was trained on
QVK = Fused("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.v_proj", "self_attn.k_proj"), grouped(4))
NAMES = gptj.NAMES.extended(fused=(QVK,), ignored=(r".*\.attn\.causal_mask",))


@family("codegen", NAMES)
def codegen(c: HFConfig) -> Decoder:
    return gptj.gptj(c)
