"""Types that transformers counts among causal language models, and that are not loaded, with the reason."""

CODEBOOKS = "each of its steps takes and gives one token of every codebook of sound, with no text among them"
DRAFTER = "it drafts for a Gemma 4, from that model's hidden states, keys and values, and has none of its own"
NO_MODEL = {
    "gemma4_assistant": DRAFTER,
    "gemma4_unified_assistant": DRAFTER,
    "musicgen": CODEBOOKS,
    "musicgen_melody": CODEBOOKS,
}
NOT_BUILT = {
    "blt": "it reads patches of bytes that end where a second model is unsure, as many as that makes of each row, and "
    "a cache would have to grow by patches",
    "cpmant": "each pass puts learned tokens in front of a text and lets all tokens see each other, also those behind, "
    "so that decoding from a cache is not one pass over the whole",
    "prophetnet": "a token is predicted by streams of queries of their own, which see the text's keys and one that "
    "they make themselves",
    "reformer": "its attention sees what random hashes of a whole sequence put together, which a cache cannot continue",
    "xlnet": "a token is predicted by a second stream of queries over a whole sequence, which has no cache",
}
REFUSED = {name: f"is no language model: {reason}" for name, reason in NO_MODEL.items()} | {
    name: f"is not implemented: {reason}" for name, reason in NOT_BUILT.items()
}
