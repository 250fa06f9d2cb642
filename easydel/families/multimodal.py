"""Models of images or sound, of which only the language model is read. A row for each type."""

from easydel.families.qwen2_vl import VISUAL, qwen2_text, qwen3_text
from easydel.multimodal import Wrapper, text_config

IMAGES = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
NEWLINE = r"(model\.)?image_newline"
ROWS = (
    Wrapper("gemma3", "Gemma 3 with images (Gemma Team 2025, arXiv:2503.19786)", text_config(tied=True), IMAGES),
    Wrapper("got_ocr2", "GOT-OCR 2 (Wei et al. 2024, arXiv:2409.01704)", text_config(tied=True), IMAGES),
    Wrapper("internvl", "InternVL 3 (Zhu et al. 2025, arXiv:2504.10479)", text_config(tied=True), IMAGES),
    Wrapper("llama4", "Llama 4 (Meta 2025)", text_config(tied=False), (r"(model\.)?vision_model\..*", *IMAGES)),
    Wrapper("llava", "LLaVA (Liu et al. 2023, arXiv:2304.08485)", text_config(tied=None), IMAGES),
    Wrapper("llava_next", "LLaVA-NeXT (Liu et al. 2024)", text_config(tied=False), (*IMAGES, NEWLINE)),
    Wrapper("mistral3", "Mistral Small 3.1, Ministral 3 (Mistral AI 2025)", text_config(tied=True), IMAGES),
    Wrapper("qwen2_vl", "Qwen2-VL (Wang et al. 2024, arXiv:2409.12191)", qwen2_text, VISUAL),
    Wrapper("qwen2_5_vl", "Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923)", qwen2_text, VISUAL),
    Wrapper("qwen3_vl", "Qwen3-VL (Bai et al. 2025, arXiv:2511.21631)", qwen3_text, VISUAL),
)
WRAPPERS = {row.model_type: row for row in ROWS}
