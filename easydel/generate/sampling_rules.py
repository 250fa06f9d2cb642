"""From settings to the rules that programs take."""

from __future__ import annotations

import logging
import secrets

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import ArgumentError
from easydel.generate.prompt import Prompt
from easydel.generate.settings import GenerateSettings
from easydel.module import LanguageModel
from easydel.ops.beams import Beams
from easydel.ops.sampling import Rules, Sampling

logger = logging.getLogger(__name__)
DEFAULT_NEW_TOKENS = 20  # max_length of transformers; since its version 5 it counts new tokens unless it is set
LEAST_CANDIDATES = 64
# At this temperature any difference of scores exceeds the noise of sampling; a much lower one would overflow scores.
LEAST_TEMPERATURE = 1e-20


def ending(settings: GenerateSettings) -> tuple[list[int], int | None]:
    """Returns the tokens that end a row, and the token that fills it up (by default the first end token)."""
    named = settings["eos_token_id"]
    ends = [token for token in (named if isinstance(named, list) else [named]) if token is not None and token >= 0]
    pad = settings["pad_token_id"]
    if pad is None or pad < 0:
        pad = ends[0] if ends else None
    return ends, pad


def new_tokens(model: LanguageModel, settings: GenerateSettings, prompt: Prompt, source: Prompt | None) -> int:
    """Returns the largest number of new tokens. Raises ArgumentError if there is no room for one, or for as many."""
    new, total, longest = settings["max_new_tokens"], settings["max_length"], model.record.longest
    read = prompt.attended if source is None else source.attended
    room = model.record.longest_of("input_ids")
    if room is not None and read > room:
        raise ArgumentError(f"the prompt has {read} tokens, but the model has {room} positions")
    made_for = model.config.get("max_position_embeddings")
    if source is None and isinstance(made_for, int) and read > made_for:
        told = "the prompt has %d tokens, and the model was made for %d: what follows may make no sense"
        logger.warning(told, read, made_for)
    if new is None and total is None:
        total = prompt.length + DEFAULT_NEW_TOKENS
        total = min(total, model.config.get("max_position_embeddings") or total, longest or total)
    if new is None:
        new = total - prompt.length
    if new < 1:
        raise ArgumentError(
            f"a prompt of {prompt.length} tokens leaves no room for new ones in {total}", hint="pass max_new_tokens"
        )
    # the last token is never fed back, so it takes no position
    if longest is not None and prompt.attended + new - 1 > longest:
        raise ArgumentError(
            f"{prompt.attended} tokens of prompt and {new} new ones exceed the model's {longest} positions",
            hint=f"pass max_new_tokens={longest - prompt.attended + 1} or less",
        )
    return new


def make_rules(
    settings: GenerateSettings, key: np.ndarray | None, vocabulary: int, source: Prompt, *, length: int, new: int
) -> Rules:
    """Returns `settings` as arrays, None if without effect. `vocabulary` counts tokens, `length` those of prompts.

    `source` is what an encoder reads, or else the prompts.
    """
    ends, pad = ending(settings)
    least = settings["min_new_tokens"]
    if least is None:
        least = (settings["min_length"] or 0) - length
    penalty, run = settings["repetition_penalty"], settings["encoder_no_repeat_ngram_size"] or 0
    forced = [(0, settings["forced_bos_token_id"])] if length == 1 else []
    forced = [entry for entry in (*forced, (new - 1, settings["forced_eos_token_id"])) if entry[1] is not None]
    return Rules(
        sampling=None if key is None else make_sampling(settings, key, vocabulary),
        eos_E=np.asarray(ends, np.int32) if ends else None,
        pad=np.int32(pad or 0),
        min_new_tokens=np.int32(least) if least > 0 and ends else None,
        forced_at_F=np.asarray([place for place, _ in forced], np.int32) if forced else None,
        forced_F=np.asarray([token for _, token in forced], np.int32) if forced else None,
        beams=make_beams(settings, new),
        repetition_penalty=None if penalty in (None, 1) else np.float32(penalty),
        bad_words_NL=bad_words(settings["bad_words_ids"], ends),
        suppressed_T=np.asarray(settings["suppress_tokens"], np.int32) if settings["suppress_tokens"] else None,
        source_BS=np.where(source.attended_BT, source.ids_BT, vocabulary).astype(np.int32) if run else None,
        no_repeat_ngram_size=settings["no_repeat_ngram_size"] or 0,
        encoder_no_repeat_ngram_size=run,
        processors=tuple(settings["logits_processor"] or ()),
        scored=bool(settings["output_scores"]),
    )


def make_beams(settings: GenerateSettings, new: int) -> Beams | None:
    """Returns the settings of a search with beams, if there are several. ArgumentError for what it cannot do."""
    width, returned = settings["num_beams"] or 1, settings["num_return_sequences"] or 1
    if width == 1:
        return None
    if settings["do_sample"]:
        raise ArgumentError(f"num_beams={width} with do_sample=True is not implemented", hint="pass num_beams=1")
    if returned > width:
        raise ArgumentError(f"num_return_sequences={returned} are more than num_beams={width}")
    penalty, early = settings["length_penalty"], settings["early_stopping"] or False
    return Beams(np.float32(1 if penalty is None else penalty), np.int32(new), width, early)


def bad_words(words: list[list[int]] | None, ends: list[int]) -> np.ndarray | None:
    """Returns the words [N, longest], -1 in front of shorter ones; an end token is no word, as in transformers."""
    kept = [word for word in words or () if not (len(word) == 1 and word[0] in ends)]
    if not kept:
        return None
    longest = max(map(len, kept))
    return np.asarray([[-1] * (longest - len(word)) + word for word in kept], np.int32)


def make_sampling(settings: GenerateSettings, key: np.ndarray, vocabulary: int) -> Sampling:
    """Returns the settings of a draw. The number of candidates is a power of two, so that few top_k values compile."""
    top_k, top_p, min_p = settings["top_k"], settings["top_p"], settings["min_p"]
    narrowed = bool(top_k) and top_k < vocabulary
    return Sampling(
        key=key,
        temperature=np.float32(max(settings["temperature"] or 1, LEAST_TEMPERATURE)),
        top_k=np.int32(top_k) if narrowed else None,
        top_p=None if top_p in (None, 1) else np.float32(top_p),
        min_p=None if min_p is None else np.float32(min_p),
        candidates=min(max(LEAST_CANDIDATES, 1 << (top_k - 1).bit_length()), vocabulary) if narrowed else 0,
    )


def drawn_seed() -> int:
    """A seed that nobody can foresee, the same in all processes: they have to call this together."""
    seed = secrets.randbits(31)
    if jax.process_count() == 1:
        return seed
    from jax.experimental import multihost_utils  # slow to import

    return int(multihost_utils.broadcast_one_to_all(np.int32(seed)))


def random_key(seed: int | None, rng: jax.Array | None) -> np.ndarray:
    """A key's raw numbers: those of `rng`, else of the key made from `seed`."""
    if rng is None:
        if not isinstance(seed, int | np.integer):
            raise ArgumentError(f"seed is {seed!r}, expected a whole number", hint="pass a key of jax.random as rng")
        return np.asarray(jax.random.key_data(jax.random.key(int(seed))))
    wanted = jax.random.key_data(jax.random.key(0))
    if hasattr(rng, "dtype") and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.key_data(rng)
    if getattr(rng, "dtype", None) != wanted.dtype or rng.shape != wanted.shape:
        found = f"{rng.dtype}{list(rng.shape)}" if isinstance(rng, jax.Array | np.ndarray) else repr(rng)
        raise ArgumentError(f"rng is {found}, expected one key of jax.random", hint="pass a whole number as seed")
    return np.asarray(rng)
