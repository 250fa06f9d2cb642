"""Models of images or sound, of which only the language model is read. A row for each type."""

from easydel.families import (
    _heard,
    dots3_note as dots3,
    fuyu,
    inkling2,
    inkling_mm_model as inkling,
    minimax_m3_vl as minimax,
    mllama,
    phi4_multimodal as phi4,
)
from easydel.families.qwen2_vl import VISUAL, qwen2_text, text_as
from easydel.multimodal import Wrapper, text_config

IMAGES = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
SEEN_AND_HEARD = (r"(model\.)?(vision_tower|audio_tower|vision_embedder|embed_vision|embed_audio)\..*",)
AHEAD = r"mtp\..*"  # layers that predict tokens further ahead
SEEN_BY_LLAMA = (r"(model\.)?vision_model\..*", *IMAGES)
HEARD = (r"(model\.)?(audio_tower|multi_modal_projector)\..*",)
HEARD_BY_GRANITE = (r"(model\.)?(encoder|projector)\..*",)
HEARD_BY_VIBEVOICE = (r"(model\.)?(acoustic|semantic)_tokenizer_encoder\..*", *HEARD)
FLAMINGO = "Audio Flamingo 3 (Goel et al. 2025, arXiv:2507.08128)"
GRANITE = "Granite Speech (IBM 2025, arXiv:2505.08699)"
VOXTRAL = text_as("llama", tied=False, defaults=_heard.VOXTRAL)
VISION = "Llama 3.2 Vision (Llama Team 2024, arXiv:2407.21783)"
DOTS = "Dots 3 Note with images and sound (dots studio 2026, the model card of dots-studio/dots3-note-prev)"
INKLING = "Inkling with images and sound (Thinking Machines Lab 2026, the model card of thinkingmachines/Inkling)"
INKLING2 = "Inkling 2 with images (Thinking Machines Lab 2026, card of thinkingmachines/Inkling-2-Small-MXFP8)"
MINIMAX = "MiniMax-M3 with images (MiniMax 2026, the model card of MiniMaxAI/MiniMax-M3)"
PHI = "Phi-4-multimodal (Microsoft 2025, arXiv:2503.01743)"
NEWLINE = r"(model\.)?image_newline"
TOKENIZER = (r"(model\.)?vqmodel\..*",)
ROWS = (
    Wrapper("audioflamingo3", FLAMINGO, text_config(tied=False), HEARD),
    Wrapper("dots3_note", DOTS, dots3.dots3_note_text_config, dots3.IGNORED),
    Wrapper("emu3", "Emu3 (Wang et al. 2024, arXiv:2409.18869)", text_as("llama"), TOKENIZER),
    Wrapper("fuyu", "Fuyu (Adept 2023, adept.ai/blog/fuyu-8b)", fuyu.fuyu_text, fuyu.IMAGES),
    Wrapper("gemma3", "Gemma 3 with images (Gemma Team 2025, arXiv:2503.19786)", text_config(tied=True), IMAGES),
    Wrapper("gemma3n", "Gemma 3n with images and sound (Gemma Team 2025)", text_config(tied=True), SEEN_AND_HEARD),
    Wrapper("gemma4", "Gemma 4 with images, sound and video (Gemma Team 2026)", text_config(tied=True), SEEN_AND_HEARD),
    Wrapper("gemma4_unified", "Gemma 4 without towers (Gemma Team 2026)", text_config(tied=True), SEEN_AND_HEARD),
    Wrapper("glmasr", "GLM-ASR (Z.ai 2025)", text_as("llama", tied=True, defaults=_heard.GLM_ASR), HEARD),
    Wrapper("got_ocr2", "GOT-OCR 2 (Wei et al. 2024, arXiv:2409.01704)", text_config(tied=True), IMAGES),
    Wrapper("granite_speech", GRANITE, text_config(tied=True), HEARD_BY_GRANITE),
    Wrapper("granite_speech_plus", f"{GRANITE}, with speakers and times", text_config(tied=True), HEARD_BY_GRANITE),
    Wrapper("inkling2", INKLING2, inkling2.inkling2_text_config, inkling2.IGNORED),
    Wrapper("inkling_mm_model", INKLING, text_config(tied=False), inkling.IGNORED, names=inkling.NAMES),
    Wrapper("internvl", "InternVL 3 (Zhu et al. 2025, arXiv:2504.10479)", text_config(tied=True), IMAGES),
    Wrapper("llama4", "Llama 4 (Meta 2025)", text_config(tied=False), SEEN_BY_LLAMA),
    Wrapper("llava", "LLaVA (Liu et al. 2023, arXiv:2304.08485)", text_config(tied=None), IMAGES),
    Wrapper("llava_next", "LLaVA-NeXT (Liu et al. 2024)", text_config(tied=False), (*IMAGES, NEWLINE)),
    Wrapper("minimax_m3_vl", MINIMAX, text_config(tied=None), minimax.IGNORED, names=minimax.NAMES),
    Wrapper("mistral3", "Mistral Small 3.1, Ministral 3 (Mistral AI 2025)", text_config(tied=True), IMAGES),
    Wrapper("mllama", VISION, mllama.mllama_text, SEEN_BY_LLAMA, mllama.mllama_tensors, mllama.text_layers),
    Wrapper("moss_transcribe_diarize", "MOSS-Transcribe-Diarize (OpenMOSS 2026)", text_config(tied=True), HEARD),
    Wrapper("musicflamingo", "Music Flamingo (NVIDIA 2025, arXiv:2511.10289)", text_config(tied=False), HEARD),
    Wrapper("phi4_multimodal", PHI, phi4.phi4_text, phi4.EXTENSIONS, phi4.adapted),
    Wrapper("phi4mm", f"{PHI}, as its authors' code names it", phi4.phi4_text, phi4.EXTENSIONS, phi4.adapted),
    Wrapper("qwen2_audio", "Qwen2-Audio (Chu et al. 2024, arXiv:2407.10759)", text_config(tied=False), HEARD),
    Wrapper("qwen2_vl", "Qwen2-VL (Wang et al. 2024, arXiv:2409.12191)", qwen2_text, VISUAL),
    Wrapper("qwen2_5_vl", "Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923)", qwen2_text, VISUAL),
    Wrapper("qwen3_5", "Qwen3.5 (Qwen Team 2026)", text_config(tied=False), (*VISUAL, AHEAD)),
    Wrapper("qwen3_5_moe", "Qwen3.5-MoE (Qwen Team 2026)", text_config(tied=False), (*VISUAL, AHEAD)),
    Wrapper("qwen4_exp", "Qwen4-Exp (Qwen Team 2026)", text_config(tied=False), (*VISUAL, AHEAD)),
    Wrapper("qwen3_asr", "Qwen3-ASR (Qwen Team 2026)", text_as("qwen3", tied=True), HEARD),
    Wrapper("qwen3_vl", "Qwen3-VL (Bai et al. 2025, arXiv:2511.21631)", text_as("qwen3"), VISUAL),
    Wrapper("vibevoice_asr", "VibeVoice-ASR (Microsoft 2026)", text_config(tied=False), HEARD_BY_VIBEVOICE),
    Wrapper("voxtral", "Voxtral (Mistral AI 2025, arXiv:2507.13264)", VOXTRAL, HEARD),
)
WRAPPERS = {row.model_type: row for row in ROWS}
