"""The checkpoint tensors that each parameter is made of, decided and checked from headers alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from easydel.errors import ArgumentError
from easydel.weights.expressions import Expression, Reshape, Source, Stack, Transpose, chain, source_names, straightened
from easydel.weights.misfit import check_fit
from easydel.weights.names import Names
from easydel.weights.sources import TensorSource, Zeros, is_spare

BLOCK_BYTES = 16 << 20
logger = logging.getLogger(__name__)
TIED_HEADS = (r".*lm_head\.weight", r"output\.weight", r".*embed_out\.weight")


@dataclass(frozen=True)
class Plan:
    """`expressions` by parameter path, over `tensors` by their names in the family's table."""

    expressions: Mapping[str, Expression]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, TensorSource]
    unused: tuple[str, ...]

    def is_transposed(self, path: str) -> bool:
        """True if rows of the parameter are columns of the file."""
        *outer, source = chain(self.expressions[path])
        assert isinstance(source, Source)
        turned = any(isinstance(one, Transpose) for one in outer)
        return turned != getattr(self.tensors[source.name], "by_columns", False)

    def is_scattered(self, path: str) -> bool:
        """True if any few rows of the parameter, and any few columns, lie all over the file."""
        *_, source = chain(self.expressions[path])
        assert isinstance(source, Source)
        return getattr(self.tensors[source.name], "scattered", False)


def make_plan(
    shapes: Mapping[str, tuple[int, ...]],
    layer_paths: Mapping[str, list[str]],
    names: Names,
    tensors: Mapping[str, TensorSource],
    *,
    tied: bool,
    file: Path | None = None,
    integers: Collection[str] = (),
    ignore: Collection[str] = (),
) -> Plan:
    """Returns a plan that fills every parameter and uses or knowingly ignores every tensor.

    Raises CheckpointError that lists all problems. `shapes` are by parameter path; `layer_paths` gives the per-layer
    paths that a (stacked) parameter consists of. `file` lists the tensors, such as an index: the error names it if no
    tensor's own file is to blame. If `tied`, the head may replace token vectors that the checkpoint lacks. A parameter
    with a scale per row beside it is stored as int8, those in `integers` as integers of any size, and any other as
    floats. Tensors without a place are left out if a pattern in `ignore` matches their names; it is an error if none
    does.
    """
    expressions = _expressions(shapes, layer_paths, names)
    readers = source_names(expressions)
    found = resolved(readers.keys(), names, tensors, tied=tied)
    found |= _zeros(expressions, shapes, set(names.optional) - set(found), file)
    unused = _unused(tensors, found)
    spare = {name for name in unused if _is_ignored(name, names, tied) or is_spare(tensors[name])}
    homeless = _homeless({name: tensors[name] for name in unused if name not in spare}, ignore, file)
    check_fit(expressions, readers, shapes, found, homeless, integers=integers, file=file)
    expressions, found = _as_stored(expressions, found)
    return Plan(expressions, shapes, found, unused)


def _expressions(
    shapes: Mapping[str, tuple[int, ...]], layer_paths: Mapping[str, list[str]], names: Names
) -> dict[str, Expression]:
    """Returns the expression of each parameter; stacked ones are made of their layers' tensors."""
    per_layer = {
        part: shapes[path] if parts == [path] else shapes[path][1:]
        for path, parts in layer_paths.items()
        for part in parts
    }
    single = {path: names.expression(path, per_layer) for path in per_layer}
    return {
        path: single[path] if parts == [path] else Stack(tuple(single[part] for part in parts))
        for path, parts in layer_paths.items()
    }


def _unused(tensors: Mapping[str, TensorSource], found: Mapping[str, TensorSource]) -> tuple[str, ...]:
    used = {id(tensor) for tensor in found.values()}
    return tuple(name for name, tensor in tensors.items() if id(tensor) not in used)


def _homeless(unused: Mapping[str, TensorSource], ignore: Collection[str], file: Path | None) -> list[TensorSource]:
    """Returns the unused tensors that no pattern matches. Raises ArgumentError for patterns that match none."""
    matched = {pattern: {name for name in unused if re.fullmatch(pattern, name)} for pattern in ignore}
    if idle := [pattern for pattern, names in matched.items() if not names]:
        extra = ", ".join(list(unused)[:8]) or "none"
        problem = f"ignore has {idle}, which match no tensor that the model has no place for"
        raise ArgumentError(problem, file=file, hint=f"tensors without a place: {extra}")
    left_out = {name for names in matched.values() for name in names}
    if left_out:
        logger.info("%s: left out, as ignore says: %s", file, ", ".join(sorted(left_out)[:20]))
    return [tensor for name, tensor in unused.items() if name not in left_out]


def _is_ignored(name: str, names: Names, tied: bool) -> bool:
    """True for a tensor that needs no loading: those in the table, and the head if it is tied."""
    return any(re.fullmatch(pattern, name) for pattern in (*names.ignored, *(TIED_HEADS if tied else ())))


def _as_stored(
    expressions: dict[str, Expression], found: dict[str, TensorSource]
) -> tuple[dict[str, Expression], dict[str, TensorSource]]:
    """Returns expressions and tensors without what undoes, of a tensor, how it differs from the file's."""

    def others(attribute: str) -> dict[str, TensorSource]:
        stored = {name: getattr(tensor, attribute, None) for name, tensor in found.items()}
        return {name: other for name, other in stored.items() if other is not None}

    def reshapes(of: Expression, name: str) -> bool:
        return isinstance(of, Reshape) and name in reshaped and of.ours == reshaped[name].shape

    if reshaped := others("reshaped"):
        expressions, chosen = straightened(expressions, reshapes)
        found = found | {name: reshaped[name] for name in chosen}
    if turned := others("turned"):
        expressions, chosen = straightened(expressions, lambda of, name: isinstance(of, Transpose) and name in turned)
        found = found | {name: turned[name] for name in chosen}
    return expressions, found


def head_differs(names: Names, tensors: Mapping[str, TensorSource], vectors_at: str) -> bool:
    """True if a checkpoint holds both a head and token vectors, and they differ: then they are not tied.

    `vectors_at` is the path of the module that has the token vectors.
    """
    wanted = names.theirs("lm_head.weight"), names.theirs(f"{vectors_at}.weight")
    found = _resolve(wanted, names.prefix, names.substitutes, tensors)
    if len(found) < 2 or found[wanted[0]] is found[wanted[1]]:
        return False
    head, embedding = (found[name] for name in wanted)
    if head.shape != embedding.shape or head.dtype != embedding.dtype:
        return True
    rows = max(BLOCK_BYTES // max(head.dtype.itemsize * head.shape[-1], 1), 1)
    blocks = ((slice(start, start + rows),) for start in range(0, head.shape[0], rows))
    return any(head.read(block).tobytes() != embedding.read(block).tobytes() for block in blocks)


def resolved(
    wanted: Collection[str], names: Names, tensors: Mapping[str, TensorSource], *, tied: bool
) -> dict[str, TensorSource]:
    """Returns the checkpoint's tensors by the names in its family's table, whatever prefix and substitutes it uses."""
    return _resolve(wanted, names.prefix, _substitutes(names, tied), tensors)


def head_and_embedding(names: Names) -> tuple[str, str]:
    """Returns the checkpoint's names of the matrices of the head and of the token vectors."""
    return names.theirs("lm_head.weight"), names.theirs("model.embed_tokens.weight")


def _substitutes(names: Names, tied: bool) -> Mapping[str, tuple[str, ...]]:
    """Returns the table's substitutes. If `tied`, the head is the last one for the token vectors: it is the same."""
    if not tied:
        return names.substitutes
    head, embedding = head_and_embedding(names)
    others = (*names.substitutes.get(embedding, ()), head, *names.substitutes.get(head, ()))
    return {**names.substitutes, embedding: others}


def _resolve(
    wanted: Collection[str],
    prefix: str,
    substitutes: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, TensorSource],
) -> dict[str, TensorSource]:
    """Returns tensors by wanted name, in the spelling of the family's table that finds most.

    Files of a base model lack the family's prefix. Files of a multimodal model, whose language model has its config
    here, have language_model before or within it; those of a model of speech, decoder before it.
    """
    found: list[dict[str, TensorSource]] = []
    for spelling in _spellings(prefix):
        found.append(_spelled(wanted, substitutes, tensors, spelling))
        if len(found[-1]) == len(wanted):
            return found[-1]
    return max(found, key=len)


def _spellings(prefix: str) -> tuple[Callable[[str], str], ...]:
    body = f"{prefix}."
    return (
        lambda name: name,
        lambda name: name.removeprefix(body),
        lambda name: f"language_model.{name}",
        lambda name: f"decoder.{name}",
        lambda name: f"{body}language_model.{name.removeprefix(body)}" if name.startswith(body) else name,
    )


def _spelled(
    wanted: Collection[str],
    substitutes: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, TensorSource],
    spelling: Callable[[str], str],
) -> dict[str, TensorSource]:
    """Returns the tensors that exist under their own name, or a substitute's, in this spelling."""
    found = {name: tensors[own] for name in wanted if (own := spelling(name)) in tensors}
    for name, others in substitutes.items():
        if name in wanted and name not in found:
            known = next((own for other in others if (own := spelling(other)) in tensors), None)
            if known is not None:
                found[name] = tensors[known]
    return found


def _zeros(
    expressions: Mapping[str, Expression], shapes: Mapping[str, tuple[int, ...]], lacking: set[str], file: Path | None
) -> dict[str, TensorSource]:
    return {
        name: Zeros(name, shape, file or Path())
        for path, expression in expressions.items()
        for name, shape in expression.shapes(shapes[path]).items()
        if name in lacking
    }
