"""Types that transformers counts among causal language models, and that cannot be one over one vocabulary of tokens."""

CODEBOOKS = "each of its steps takes and gives one token of every codebook of sound, with no text among them"
DRAFTER = "it drafts for a Gemma 4, from that model's hidden states, keys and values, and has none of its own"
REFUSED = {
    "gemma4_assistant": DRAFTER,
    "gemma4_unified_assistant": DRAFTER,
    "musicgen": CODEBOOKS,
    "musicgen_melody": CODEBOOKS,
}
