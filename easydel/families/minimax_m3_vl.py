"""MiniMax-M3 with images: the names of its files, which have a tensor for each expert and for each gate."""

from easydel.weights.names import Names

IGNORED = (r"(model\.)?(vision_tower|multi_modal_projector|patch_merge_mlp)\..*",)
EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
NAMES = Names(
    {
        r"mlp\.gate": "block_sparse_moe.gate",
        r"mlp\.gate\.correction_bias": "block_sparse_moe.e_score_correction_bias",
        **{rf"mlp\.experts\.\*\.{ours}": f"block_sparse_moe.experts.*.{theirs}" for ours, theirs in EXPERTS.items()},
        r"mlp\.shared_expert": "block_sparse_moe.shared_experts",
        r"indexer\.w([qk])": r"index_\1_proj",
        r"indexer\.([qk])_norm": r"index_\1_norm",
    }
)
