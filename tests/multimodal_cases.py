"""Tiny models of images or sound around language models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cases import FULL, SIZES, SLIDING, Case
from cases.dots3_note_text import CASES as DOTS3
from cases.inkling2_text import CASES as INKLING2
from cases.inkling_text import CASES as INKLING
from cases.minimax_m3_vl_text import CASES as MINIMAX
from cases.qwen3_next import DELTA, SPARSE
from cases.qwen4_exp_text import NGRAMS, SMALL as QWEN4_SIZES

Config = dict[str, Any]
IMAGE: Config = {"image_size": 28, "patch_size": 14, "hidden_size": 32, "intermediate_size": 40}
IMAGE |= {"num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = IMAGE | {"model_type": "clip_vision_model"}
SAM: Config = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_dim": 40,
}
SAM |= {"image_size": 32, "patch_size": 16, "global_attn_indexes": [0], "window_size": 2}
SEEN: Config = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2}
SEEN |= {"out_hidden_size": 48, "patch_size": 4}
POSITIONS: Config = {"num_position_embeddings": 16}
SECTIONS: Config = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}}
TWO_ROPES: Config = {
    FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 50.0},
}
GEMMA4: Config = {"head_dim": 8, "global_head_dim": 12, "sliding_window": 5}


@dataclass(frozen=True)
class Multimodal(Case):
    """A tiny multimodal model: `config` is that of its language model, then those of what sees, and its own."""

    vision: Config = field(default_factory=dict)
    outer: Config = field(default_factory=dict)


def case(name: str, text: Config, vision: Config, **outer: Any) -> Multimodal:
    return Multimodal(name, name.partition(" ")[0], SIZES | text, vision=vision, outer=outer)


VQ: Config = {"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32}
VQ |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [1], "hidden_size": 32}
VQ |= {"num_attention_heads": 2}
AUDIO: Config = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
SPEECH: Config = {"hidden_size": 32, "intermediate_size": 40, "num_blocks": 1, "num_attention_heads": 2}
SPEECH |= {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}
HEARD: Config = {"num_hidden_layers": 1}  # as the language models are, other cases have them
GRANITE: Config = HEARD | {"residual_multiplier": 0.7, "attention_multiplier": 0.3}
WHISPER: Config = {"d_model": 32, "encoder_ffn_dim": 40, "encoder_layers": 1, "encoder_attention_heads": 2}
QFORMER: Config = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
HEARD_BY_GRANITE: Config = {
    "encoder_config": {"input_dim": 8, "num_layers": 1, "hidden_dim": 32, "num_heads": 2, "output_dim": 5},
    "projector_config": QFORMER | {"model_type": "blip_2_qformer", "encoder_hidden_size": 32},
    "has_lora_adapter": False,
}
VIBES: Config = {"num_filters": 2, "downsampling_ratios": [2], "depths": [1, 1], "hidden_size": 4}
LONG: Config = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.2, 1.5],
    "partial_rotary_factor": 0.75,
}
LONG |= {"long_factor": [1.0, 2.0, 4.0], "original_max_position_embeddings": 16}


CASES = [
    case(
        "gemma3",
        {"head_dim": 10, "query_pre_attn_scalar": 12, "sliding_window": 5, "rope_parameters": TWO_ROPES}
        | {"layer_types": [SLIDING, FULL, SLIDING]},
        IMAGE,
        mm_tokens_per_image=4,
        eos_token_id=[1, 90],
    ),
    case(
        "gemma3 untied", {"head_dim": 8, "sliding_window": 5}, IMAGE, mm_tokens_per_image=4, tie_word_embeddings=False
    ),
    case(
        "gemma4",
        GEMMA4
        | {"num_hidden_layers": 4, "layer_types": [SLIDING, FULL] * 2, "num_kv_shared_layers": 2}
        | {"hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 97},
        IMAGE | {"head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 32},
    ),
    case(
        "gemma4_unified",
        GEMMA4 | {"layer_types": [SLIDING, FULL, FULL], "attention_k_eq_v": True, "num_global_key_value_heads": 3},
        {"patch_size": 4, "mm_embed_dim": 48, "mm_posemb_size": 32, "output_proj_dims": 48},
        audio_config=None,
    ),
    case("mistral3", {"model_type": "mistral", "sliding_window": 5}, IMAGE | {"model_type": "pixtral", "head_dim": 16}),
    case(
        "mistral3 of ministral3",
        {"model_type": "ministral3", "head_dim": 8},
        IMAGE | {"model_type": "pixtral", "head_dim": 16},
    ),
    case(
        "llama4",
        {"head_dim": 10, "attention_chunk_size": 4, "num_local_experts": 3, "intermediate_size_mlp": 56}
        | {"no_rope_layer_interval": 2, "interleave_moe_layer_step": 2},
        IMAGE | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
    case("llava", {"model_type": "llama", "attention_bias": True}, CLIP),
    case("llava_next", {"model_type": "mistral", "tie_word_embeddings": True, "sliding_window": None}, CLIP),
    case(
        "internvl",
        {"model_type": "qwen2"},
        IMAGE | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]},
    ),
    case("got_ocr2", {}, SAM),
    case(
        "qwen2_vl",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True}
        | SECTIONS,
        SEEN,
    ),
    case("qwen2_5_vl", SECTIONS, SEEN | {"fullatt_block_indexes": [0]}),
    case(
        "qwen3_vl",
        {"head_dim": 10, "rope_parameters": SECTIONS["rope_parameters"] | {"mrope_section": [1, 2, 2]}},
        SEEN | POSITIONS | {"deepstack_visual_indexes": [0]},
    ),
    case("qwen3_5", DELTA, SEEN | POSITIONS),
    case("emu3", {"pad_token_id": 0}, {}, vq_config=VQ, vocabulary_map={"<image>": 90}),
    case(
        "dots3_note",
        DOTS3[0].config,
        IMAGE | {"adapter_in_dim": 32, "adapter_out_dim": 48, "mlp_layer_types": ["dense"], "patch_size": 14},
        audio_config=AUDIO | {"adapter_input_size": 32, "adapter_out_dim": 48, "downsample_hidden_size": 8},
    ),
    replace(case("minimax_m3_vl", MINIMAX[0].config, IMAGE, projector_hidden_size=32), slot_positions=True),
    case(
        "inkling_mm_model",
        INKLING[0].config,
        {"patch_size": 4, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 5},
    ),
    case("inkling2", INKLING2[1].config, IMAGE | {"text_hidden_size": 48, "projection_hidden_dim": 40}),
    case("fuyu", {"num_key_value_heads": 6}, {}, patch_size=2),
    case(
        "mllama",
        {"num_hidden_layers": 5, "cross_attention_layers": [1, 3], "pad_token_id": 0},
        IMAGE
        | {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64, "intermediate_layers_indices": [0]},
    ),
    case("moss_transcribe_diarize", {"head_dim": 10}, {}, audio_config=AUDIO),
    case("audioflamingo3", HEARD, {}, audio_config=AUDIO),
    case("musicflamingo", HEARD, {}, audio_config=AUDIO | {"model_type": "audioflamingo3_encoder"}),
    case("glmasr", HEARD, {}, audio_config=AUDIO),
    case("granite_speech", GRANITE, {}, **HEARD_BY_GRANITE),
    case("granite_speech_plus", GRANITE, {}, **HEARD_BY_GRANITE),
    case("qwen2_audio", HEARD, {}, audio_config=WHISPER),
    case("qwen3_asr", HEARD | {"head_dim": 10}, {}, audio_config=WHISPER | {"output_dim": 48}, pad_token_id=0),
    case("vibevoice_asr", HEARD, {}, acoustic_tokenizer_encoder_config=VIBES, semantic_tokenizer_encoder_config=VIBES),
    case("voxtral", HEARD | {"head_dim": 10}, {}, audio_config=AUDIO | {"intermediate_size": 128}),
    case(
        "phi4_multimodal", {"sliding_window": 5, "rope_parameters": LONG, "pad_token_id": 0}, IMAGE, audio_config=SPEECH
    ),
    # torch rounds the last few tokens by where a file's gates of shared experts lie in memory, unless 16 divides them
    replace(case("qwen3_5_moe", DELTA | SPARSE | {"num_experts_per_tok": 2}, SEEN | POSITIONS), length=16),
    replace(case("qwen4_exp", QWEN4_SIZES | NGRAMS | {"num_experts_per_tok": 2}, SEEN | POSITIONS), length=16),
]
