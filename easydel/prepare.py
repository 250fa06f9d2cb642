"""The decisions of a load, made and checked from headers before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.config import HFConfig, shown
from easydel.decoder import Decoder
from easydel.errors import ArgumentError, CheckpointError, ConfigError, EasyDeLError
from easydel.forms import Form
from easydel.garbage import collected_later
from easydel.layers.linear import Buffer
from easydel.module import CausalLMOutput, LanguageModel, forward
from easydel.options import LoadOptions
from easydel.policy import Policy
from easydel.quantize import Int4, Int8, make_int4, make_int8
from easydel.source import CheckpointSource
from easydel.stored import Split, forms_of
from easydel.tree import Tree, flatten, of_kind, variables_of
from easydel.weights.coded import CodedTensor, OnlyFloats
from easydel.weights.expressions import source_names
from easydel.weights.kept import kept
from easydel.weights.names import OWN
from easydel.weights.plan import Plan, make_plan
from easydel.weights.saved import MANIFEST, Manifest, coded, int8_forms


@dataclass(frozen=True)
class Prepared:
    """The decisions of a load: every parameter by path, its dtype and its sharding.

    Parameters in `rounded` are quantized on the way, to their forms.
    """

    plan: Plan
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    rounded: Mapping[str, Form]

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.shapes.values())


@collected_later()
def prepare(model: LanguageModel, source: CheckpointSource, options: LoadOptions) -> Prepared:
    """Makes the remaining decisions of a load, and the last checks before weights are read."""
    split = options.placement.sharding
    choices = {"dequantize": options.dequantize, "split": split, "ignore": options.ignore}
    plan, rounded = plan_for(model, source, options.quantize, **choices)
    coded = [tensor for tensor in plan.tensors.values() if isinstance(tensor, CodedTensor | OnlyFloats)]
    if coded and not options.reading.allow_nonfinite:
        from easydel.weights.formats.finite import check_scales  # imports the readers of all formats

        check_scales(coded)
    leaves = flatten(model.params)
    placed = options.placement.shardings_of(leaves)
    trace(model, options.input_shape)
    shapes = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[p]) for p, leaf in leaves.items()}
    return Prepared(plan, shapes, rounded)


def plan_for(
    model: LanguageModel,
    source: CheckpointSource,
    quantize: Int8 | Int4 | None = None,
    *,
    dequantize: bool | None = None,
    split: Split | None = None,
    ignore: Collection[str] = (),
) -> tuple[Plan, Mapping[str, Form]]:
    """Returns the plan for a model whose parameters are still floats, and the forms of those to quantize while reading.

    `quantize` chooses parameters to quantize; those that the directory stores as int8 become int8 in any case. Others
    that the checkpoint stores by codes stay so, unless `dequantize` (GGUF's: if that is False), in blocks that `split`
    over devices cuts nowhere. Tensors without a place are left out if a pattern in `ignore` matches their names.
    """
    table, tensors, manifest = source.names or model.names, source.stored(dequantize), source.manifest
    stored: Collection[str] = ()
    if manifest is not None:
        table = OWN
        if dequantize:
            tensors = coded(tensors, int8_forms(tensors, manifest), source.path / MANIFEST)
        else:
            stored = stored_int8(model, manifest, source.path / MANIFEST)
    variables = variables_of(model)
    leaves = {path: variable.get_raw_value() for path, variable in variables.items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    file = source.checkpoint.catalog
    integers = {p for p in of_kind(variables, Buffer) if not jnp.issubdtype(leaves[p].dtype, jnp.floating)}
    choices = {"tied": model.record.head.tied, "file": file, "integers": integers, "ignore": ignore}
    if source.checkpoint.metadata.get("format") == "mlx":
        from easydel.weights.mlx_names import as_mlx_saves

        table, tensors = as_mlx_saves(table, tensors, file)
    plan = make_plan(shapes, model.canonical_paths(), table, tensors, **choices)
    take_dtypes(variables, model.exact_among(variables), plan)
    chosen: Collection[str] = ()
    if isinstance(quantize, Int4):
        chosen = make_int4(model, quantize.targets, split)
    elif quantize is not None:
        chosen = make_int8(model, quantize.targets)
    forms = forms_of(model) if chosen else {}
    if not dequantize:
        plan = kept(model, plan, chosen, split)
    return plan, {path: forms[path] for path in chosen if path not in stored}


def take_dtypes(variables: Mapping[str, nnx.Param], exact: Collection[str], plan: Plan) -> None:
    """Gives buffers, which have no values yet, the dtypes of the tensors that they are read from.

    So it does exact parameters, where their own dtype would round these.
    """
    for path in (*of_kind(variables, Buffer), *exact):
        stored = [plan.tensors[name].dtype for name in source_names({path: plan.expressions[path]})]
        if not stored:  # a file may leave it out
            continue
        leaf = variables[path].get_raw_value()
        stored += [leaf.dtype] if path in exact else []
        dtype = jax.dtypes.canonicalize_dtype(reduce(jnp.promote_types, stored))
        variables[path].set_raw_value(jax.ShapeDtypeStruct(leaf.shape, dtype))


def stored_int8(model: LanguageModel, manifest: Manifest, file: Path) -> Collection[str]:
    """Declares the parameters int8 that the manifest in `file` lists. Returns their paths.

    Raises CheckpointError if the model cannot hold one of them as int8.
    """
    if not manifest.int8:
        return ()
    paths, wanted = model.canonical_paths(), set(manifest.int8)
    try:
        stored = make_int8(model, [path for path, parts in paths.items() if wanted.issuperset(parts)])
    except ArgumentError:
        stored = []
    if unknown := sorted(wanted.difference(*(paths[path] for path in stored))):
        names = ", ".join(map(shown, unknown[:8]))
        problem = f"lists {names} as int8, but this model cannot store that as int8"
        partly = any(len(parts) > 1 and not wanted.isdisjoint(parts) for parts in paths.values())
        hint = "stacked layers are int8 all or none: load it without scan_layers" if partly else None
        raise CheckpointError(problem, file=file, hint=hint)
    return stored


def trace(model: LanguageModel, input_shape: tuple[int, int]) -> None:
    """Runs the model on shapes alone, so that a model that cannot work fails here."""
    longest = model.record.longest
    if longest is not None and input_shape[1] > longest:
        raise ArgumentError(f"input_shape={input_shape!r} is longer than the model's {longest} positions")
    try:
        _check_runs(model.record.distinct(), model.policy, input_shape)
    except EasyDeLError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        problem = f"describes a model that cannot run ({type(error).__name__}: {str(error)[:500]})"
        raise ConfigError(problem, file=model.config.file) from error


@lru_cache
def _check_runs(record: Decoder, policy: Policy, input_shape: tuple[int, int]) -> None:
    """Traces each kind of model once per process: a trace takes longer than all other planning.

    `record` has one layer of each kind, and a new model is built from it; the config does not affect its computation.
    """
    model = LanguageModel(record, HFConfig({}), policy)

    def run(params: Tree, input_ids: jax.Array) -> CausalLMOutput:
        return forward(model, params, record.example({"input_ids": input_ids}))

    jax.eval_shape(run, model.params, jax.ShapeDtypeStruct(input_shape, jnp.int32))
