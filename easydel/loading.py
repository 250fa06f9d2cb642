"""The steps of a load once its arguments are understood and its headers read: model, plan, weights."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.config import HFConfig, shown
from easydel.decoder import Decoder
from easydel.errors import ArgumentError, CheckpointError, ConfigError, EasyDeLError, listed
from easydel.families import Family
from easydel.generate.settings import read_defaults
from easydel.model import BaseNNXModule
from easydel.module import CausalLMOutput, LanguageModel, forward
from easydel.options import LoadOptions, Reading
from easydel.policy import Policy
from easydel.progress import progress_bar
from easydel.quantize import Int8, make_int8
from easydel.report import print_sizes
from easydel.sharding import check_heads
from easydel.sharding.placement import Placement
from easydel.source import CheckpointSource
from easydel.tree import Tree, annotate, bind, flatten, unflatten
from easydel.weights import mxfp4
from easydel.weights.arrays import Arrived
from easydel.weights.execute import execute
from easydel.weights.expressions import source_names
from easydel.weights.names import OWN
from easydel.weights.plan import Plan, head_differs, make_plan
from easydel.weights.saved import MANIFEST, Manifest
from easydel.weights.sources import TensorSource

logger = logging.getLogger(__name__)
# Reading is many short calls, each of which needs the interpreter for a moment: while another thread traces, they would
# otherwise wait 5 ms for it every time.
SWITCH_SECONDS = 1e-4
SLACK = 64  # sizes may be products of others, and of parts that this family does not have


def build_model(family: Family, config: HFConfig, policy: Policy, source: CheckpointSource) -> BaseNNXModule:
    """The model without values, checked against the sizes of the checkpoint and of the mesh.

    As in transformers, a head that the file holds and that differs from the token vectors is not tied to them.
    """
    check_sizes(config, source.tensors)
    record, names = family.record(config)
    tied = not record.has_encoder and record.head.tied and source.manifest is None
    if tied and head_differs(names, source.tensors):
        logger.warning("%s: head and token vectors differ: not tied, whatever the config says", source.path)
        config = family.configured(config, {"tie_word_embeddings": False})
        record, names = family.record(config)
    origin = source.path if source.path.is_dir() else source.path.parent
    model = BaseNNXModule(record, config, policy, names, origin)
    model.generation_config = read_defaults(origin, config, own=source.checkpoint.format == "gguf")
    if policy.mesh is not None:
        check_heads_of(model, policy.mesh)
    return model


def check_sizes(config: HFConfig, tensors: Mapping[str, TensorSource]) -> None:
    """ConfigError for sizes far beyond what the checkpoint can fill, before anything of that size is built."""
    sizes = [max(tensor.shape, default=1) for tensor in tensors.values()]
    widest = SLACK * max(sizes, default=1)
    problems = [
        f"{path}={value}, and the checkpoint has {len(sizes)} tensors of at most {widest // SLACK} rows or columns"
        for path, value, layers in config.sizes()
        if value > (len(sizes) if layers else widest)
    ]
    if problems:
        raise ConfigError(f"describes a model larger than its checkpoint:{listed(problems)}", file=config.file)


def check_heads_of(model: LanguageModel, mesh: jax.sharding.Mesh) -> None:
    """ShardingError if the heads of some layer cannot be split over the mesh."""
    blocks = {block for stack in model.record.layer_stacks.values() for block in stack}
    for heads, kv_heads in {(sizes.heads, sizes.kv_heads) for block in blocks for sizes in block.head_sizes()}:
        check_heads(heads, kv_heads, mesh, model.policy.axes)


def load_weights(
    model: BaseNNXModule, source: CheckpointSource, options: LoadOptions, check_others: Callable[[], None]
) -> Tree:
    """Check everything from headers, then read the weights into the model. Returns its parameters.

    `check_others` is called now and then, and raises what went wrong in another process.
    """
    if any(isinstance(tensor, mxfp4.Mxfp4Tensor) for tensor in source.tensors.values()):
        mxfp4.refuse_remote(source.checkpoint)
    prepared = prepare(model, source, options)
    params = read(prepared, model, source, options, check_others)
    source.check_same()
    if options.reading.verbose:
        print_sizes(source.checkpoint, params)
    tree = unflatten({path: params[path] for path in prepared.shapes})
    bind(model, tree)
    annotate(model, tree)
    return tree


@dataclass(frozen=True)
class Prepared:
    """What will be read, decided and checked from headers: every parameter by path, its dtype and its sharding.

    Those in `int8` are quantized on the way.
    """

    plan: Plan
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    int8: Collection[str]

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.shapes.values())


def prepare(model: LanguageModel, source: CheckpointSource, options: LoadOptions) -> Prepared:
    """What is left to decide about a load, and the last checks before weights are read."""
    plan, int8 = plan_for(model, source, options.int8)
    leaves = flatten(model.params)
    placed = options.placement.shardings_of(leaves)
    trace(model, options.input_shape)
    shapes = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[p]) for p, leaf in leaves.items()}
    return Prepared(plan, shapes, int8)


def read(
    prepared: Prepared,
    model: BaseNNXModule,
    source: CheckpointSource,
    options: LoadOptions,
    check_others: Callable[[], None],
) -> dict[str, jax.Array]:
    """The parameters by path; what reading them took is `model.load_report`.

    NaN and Inf among the weights are an error, unless they are allowed; mapped weights of our own files were checked
    when they were written.
    """
    reading, total = options.reading, prepared.nbytes
    bar = progress_bar(f"Loading {source.path.name}", total, reading.progress)
    with bar as show, _meanwhile(reading.while_loading, model, prepared.shapes):

        def advance(share: float) -> None:
            check_others()
            if show is not None:
                show(share * total)

        params, model.load_report = execute(
            prepared.plan,
            {path: leaf.sharding for path, leaf in prepared.shapes.items()},
            {path: np.dtype(leaf.dtype) for path, leaf in prepared.shapes.items()},
            int8=prepared.int8,
            arrived=_arrival(options.placement, reading),
            advance=advance,
            finite=None if reading.allow_nonfinite else "read" if source.manifest is not None else "all",
        )
    return params


def _arrival(placement: Placement, reading: Reading) -> Arrived | None:
    """What is done to each array as it arrives, if anything is."""
    if reading.donatable:
        return lambda path, array: placement.placed(path, owned(array))
    return placement.placed if placement.functions else None


@contextmanager
def _meanwhile(
    function: Callable[[Any, Tree], object] | None, model: BaseNNXModule, shapes: Mapping[str, Any]
) -> Iterator[None]:
    if function is None:
        yield
        return
    pool, interval = ThreadPoolExecutor(1), sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        future = pool.submit(function, model, unflatten(shapes))
        yield
        future.result()
    finally:
        sys.setswitchinterval(interval)
        pool.shutdown(wait=False)


def owned(array: jax.Array) -> jax.Array:
    """The same values in memory of JAX's own, which donation can reuse; that of a mapped file or an arena it cannot."""
    return jax.jit(jnp.copy, out_shardings=array.sharding)(array)


def plan_for(model: LanguageModel, source: CheckpointSource, int8: Int8 | None = None) -> tuple[Plan, Collection[str]]:
    """The plan for a model whose parameters are floats so far, and which of them are quantized while they are read.

    `int8` says which are to be; those that the directory stores as int8 become int8 in any case.
    """
    table = OWN if source.manifest is not None else model.names
    stored = () if source.manifest is None else stored_int8(model, source.manifest, source.path / MANIFEST)
    leaves = flatten(model.params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    file = source.checkpoint.catalog
    integers = {path for path in model.buffers if not np.issubdtype(leaves[path].dtype, np.floating)}
    choices = {"tied": model.record.head.tied, "file": file, "integers": integers}
    plan = make_plan(shapes, model.canonical_paths(), table, source.tensors, **choices)
    take_dtypes(model, plan)
    chosen = () if int8 is None else make_int8(model, int8.targets)
    return plan, set(chosen) - set(stored)


def take_dtypes(model: LanguageModel, plan: Plan) -> None:
    """Give the model's buffers, which have no values yet, the dtypes of the tensors that they are read from."""
    leaves = flatten(model.params)
    for path in model.buffers:
        stored = [plan.tensors[name].dtype for name in source_names({path: plan.expressions[path]})]
        dtype = jax.dtypes.canonicalize_dtype(reduce(jnp.promote_types, stored))
        bind(model, unflatten({path: jax.ShapeDtypeStruct(leaves[path].shape, dtype)}))


def stored_int8(model: LanguageModel, manifest: Manifest, file: Path) -> Collection[str]:
    """Turn what the manifest in `file` says is int8 into that; CheckpointError if the model cannot hold it."""
    if not manifest.int8:
        return ()
    paths, wanted = model.canonical_paths(), set(manifest.int8)
    try:
        stored = make_int8(model, [path for path, parts in paths.items() if wanted.issuperset(parts)])
    except ArgumentError:
        stored = []
    if unknown := sorted(wanted.difference(*(paths[path] for path in stored))):
        names = ", ".join(map(shown, unknown[:8]))
        problem = f"says of {names} that it is stored as int8, which this model cannot"
        partly = any(len(parts) > 1 and not wanted.isdisjoint(parts) for parts in paths.values())
        hint = "stacked layers are int8 all or none: load it without scan_layers" if partly else None
        raise CheckpointError(problem, file=file, hint=hint)
    return stored


def trace(model: LanguageModel, input_shape: tuple[int, int]) -> None:
    """Run the model on shapes alone, so that what cannot work fails here."""
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
    """Once for each kind of model in a process: its trace takes longer than all other planning.

    `record` has one layer of each kind, so a model is built of it anew; the config has no say in what it computes.
    """
    model = LanguageModel(record, HFConfig({}), policy)

    def run(params: Tree, input_ids: jax.Array) -> CausalLMOutput:
        return forward(model, params, record.example({"input_ids": input_ids}))

    jax.eval_shape(run, model.params, jax.ShapeDtypeStruct(input_shape, jnp.int32))
