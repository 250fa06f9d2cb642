"""Types that transformers counts among language models, and that are not loaded, with the reason."""

CODEBOOKS = "each of its steps takes and gives one token of every codebook of sound, with no text among them"
DRAFTER = "it drafts for a Gemma 4, from that model's hidden states, keys and values, and has none of its own"
HEARS = "its decoder writes what its encoder hears, and has nothing to attend to without sound"
TIMED = "each step of its decoder takes a frame of sound beside a token, and its norms depend on the delay between them"
NO_MODEL = {
    "gemma4_assistant": DRAFTER,
    "gemma4_unified_assistant": DRAFTER,
    "musicgen": CODEBOOKS,
    "musicgen_melody": CODEBOOKS,
    "voxtral_realtime": TIMED,
    **dict.fromkeys(("canary", "cohere_asr", "moonshine", "moonshine_streaming", "speech_to_text", "speecht5"), HEARS),
    **dict.fromkeys(("pop2piano", "speech-encoder-decoder"), HEARS),
}
SEAMLESS = "it translates speech and text by several models of one checkpoint, of which NLLB's have the text (m2m_100)"
NEMO = "its files have a Nemotron-H's weights by the names and in the order of another program"
NOT_BUILT = {
    "blt": "it reads patches of bytes that end where a second model is unsure, as many as that makes of each row, and "
    "a cache would have to grow by patches",
    "cpmant": "each pass puts learned tokens in front of a text and lets all tokens see each other, also those behind, "
    "so that decoding from a cache is not one pass over the whole",
    "nemo_speechlm": NEMO,
    "reformer": "its attention sees what random hashes of a whole sequence put together, which a cache cannot continue",
    "seamless_m4t": SEAMLESS,
    "seamless_m4t_v2": SEAMLESS,
    "xlnet": "a token is predicted by a second stream of queries over a whole sequence, which has no cache",
}
REFUSED = {name: f"is no language model: {reason}" for name, reason in NO_MODEL.items()} | {
    name: f"is not implemented: {reason}" for name, reason in NOT_BUILT.items()
}
