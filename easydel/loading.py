"""The steps of a load after the arguments are understood: headers, model, placement, plan, weights."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from easydel.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from easydel.checkpoint.files import check_links
from easydel.checkpoint.open import open_remote
from easydel.config import HFConfig, shown
from easydel.decoder import Decoder
from easydel.errors import ArgumentError, CheckpointError, ConfigError, EasyDeLError, UnsupportedModelError, listed
from easydel.families import Family, find_family, find_wrapper
from easydel.model import BaseNNXModule
from easydel.module import CausalLMOutput, LanguageModel, forward
from easydel.policy import Policy
from easydel.progress import progress_bar
from easydel.quantize import make_int8
from easydel.report import print_sizes
from easydel.sharding import PartitionAxis, Rules, default_rules, shardings
from easydel.tree import Tree, bind, flatten, unflatten
from easydel.weights import mxfp4
from easydel.weights.execute import execute
from easydel.weights.expressions import source_names
from easydel.weights.names import OWN
from easydel.weights.plan import Plan, TensorSource, head_differs, make_plan
from easydel.weights.saved import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:  # it imports huggingface_hub
    from easydel.hub.stream import Streamed

logger = logging.getLogger(__name__)
Shapes = Mapping[str, jax.ShapeDtypeStruct]
SETTINGS = ("config.json", "generation_config.json", MANIFEST)
# Reading is many short calls, each of which needs the interpreter for a moment: while another thread traces, they would
# otherwise wait 5 ms for it every time.
SWITCH_SECONDS = 1e-4
SLACK = 64  # sizes may be products of others, and of parts that this family does not have


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint whose headers were read: its config, its tensors, and the manifest if `save_pretrained` wrote it."""

    path: Path
    config: HFConfig
    checkpoint: Checkpoint
    tensors: Mapping[str, TensorSource]
    manifest: Manifest | None
    identity: tuple[int, int] | None = None

    def check_same(self) -> None:
        """CheckpointError if the directory was replaced since its first file was read: some files would be older."""
        if self.identity is not None and identity_of(self.path) != self.identity:
            raise CheckpointError("was replaced while it was read", file=self.path, hint="load it again")


def identity_of(path: Path) -> tuple[int, int]:
    """Which directory or file it is, whatever its name is."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=path) from error
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class Placement:
    """Where parameters go: `sharding` for each, then `functions` (by path) are applied as they arrive."""

    sharding: Callable[[Shapes], Mapping[str, jax.sharding.Sharding]]
    functions: Mapping[str, Callable[[jax.Array], jax.Array]]


def open_source(where: Path | Streamed, *, saved: bool) -> CheckpointSource:
    """Read config and headers: of a directory, of one file with a config.json beside it (GGUF holds its own), or of a
    repository whose weights stay on the Hub.
    """
    path = where if isinstance(where, Path) else where.directory
    directory, identity = path if path.is_dir() else path.parent, identity_of(path)
    check_links(directory, [directory / name for name in SETTINGS if (directory / name).is_symlink()])
    if saved:
        manifest = read_manifest(directory)
    elif (directory / MANIFEST).is_file():
        raise CheckpointError("was written by save_pretrained", file=directory, hint="load it with from_torch=False")
    else:
        manifest = None
    if isinstance(where, Path):
        checkpoint = open_checkpoint(find_checkpoint(path) if path.is_dir() else [path])
    else:
        checkpoint = open_remote(where.weights, where.index_file)
    if checkpoint.format == "gguf":
        from easydel.weights.gguf import hf_tensors

        config = gguf_config(checkpoint)
        return CheckpointSource(path, config, checkpoint, hf_tensors(checkpoint, config.to_dict()), None, identity)
    config, tensors = dequantized(HFConfig.from_file(directory / "config.json"), checkpoint)
    return CheckpointSource(path, config, checkpoint, tensors, manifest, identity)


def language_model(source: CheckpointSource) -> CheckpointSource:
    """What `source` holds of a language model: all, or of a multimodal checkpoint that part, as one of its own."""
    outer = source.config
    wrapper = find_wrapper(outer.get("model_type"))
    if wrapper is None or source.manifest is not None:
        return source
    config, tensors = wrapper.language_config(outer), source.tensors
    if "quantization_config" in config:
        config, tensors = dequantized(config, source.checkpoint)
    try:
        find_family(config.model_type)
    except UnsupportedModelError as error:
        problem = f"is a {wrapper.model_type} whose language model is {shown(config.model_type)}: not implemented"
        raise UnsupportedModelError(problem, file=outer.file, hint=error.hint) from None
    logger.warning(
        "%s: of this %s the language model alone is loaded (%s): text, no images or sound",
        source.path,
        wrapper.model_type,
        config.model_type,
    )
    return replace(source, config=config, tensors=wrapper.language_tensors(tensors))


def read_config(path: Path) -> HFConfig:
    """The config at `path`: a directory, or one file beside a config.json. A GGUF file holds its own.

    Of a multimodal model that we know, it is the language model's.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if path.suffix != ".gguf" and (file.is_file() or not list(path.glob("*.gguf"))):
        config = HFConfig.from_file(file)
        wrapper = find_wrapper(config.get("model_type"))
        return config if wrapper is None else wrapper.language_config(config)
    return gguf_config(open_checkpoint(find_checkpoint(path)))


def gguf_config(checkpoint: Checkpoint) -> HFConfig:
    from easydel.weights.gguf import hf_config

    return HFConfig(hf_config(checkpoint.metadata, checkpoint), file=checkpoint.files[0])


def dequantized(config: HFConfig, checkpoint: Checkpoint) -> tuple[HFConfig, Mapping[str, TensorSource]]:
    """The config without what it says of packed weights, and tensors that decode them.

    UnsupportedModelError if a quantization library packed them in a way that is not known here.
    """
    settings = config.get("quantization_config")
    if not settings:
        return config, checkpoint
    method = settings.get("quant_method") if isinstance(settings, HFConfig) else None
    if method != mxfp4.METHOD:
        raise UnsupportedModelError(
            f"the weights are quantized by {method or 'an unknown method'!r}",
            file=config.file,
            hint="use the unquantized checkpoint, with load_in_8bit=True if memory is short",
        )
    mxfp4.refuse_remote(checkpoint)
    values = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    return HFConfig(values, file=config.file), mxfp4.unpacked(checkpoint)


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


def build_model(family: Family, config: HFConfig, policy: Policy, source: CheckpointSource) -> BaseNNXModule:
    """The model without values. As in transformers, a head that the file holds and that differs is not tied."""
    record, names = family.record(config)
    tied = not record.has_encoder and record.head.tied and source.manifest is None
    if tied and head_differs(names, source.tensors):
        logger.warning("%s: head and token vectors differ: not tied, whatever the config says", source.path)
        config = family.configured(config, {"tie_word_embeddings": False})
        record, names = family.record(config)
    origin = source.path if source.path.is_dir() else source.path.parent
    return BaseNNXModule(record, config, policy, names, origin)


def placement(
    mesh: jax.sharding.Mesh | None,
    axes: PartitionAxis,
    rules: Rules | None,
    functions: Mapping[Any, Any] | None,
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] (a class at run time)
) -> Placement:
    """On the mesh by rules; without one on `device`, and from there wherever `functions` (flat or nested) put them."""
    if mesh is None:
        single = jax.sharding.SingleDeviceSharding(device)
        return Placement(lambda shapes: dict.fromkeys(shapes, single), flat_functions(functions or {}))

    def by_rules(shapes: Shapes) -> Mapping[str, jax.sharding.Sharding]:
        sizes = {path: leaf.shape for path, leaf in shapes.items()}
        return shardings(sizes, mesh, rules if rules is not None else default_rules(axes), strict=rules is not None)[0]

    return Placement(by_rules, {})


def flat_functions(functions: Mapping[Any, Any], prefix: str = "") -> dict[str, Callable[[jax.Array], jax.Array]]:
    """`shard_fns` by path; its keys are path tuples, "a/b/c", or nested dicts."""
    flat: dict[str, Callable[[jax.Array], jax.Array]] = {}
    for key, value in functions.items():
        path = prefix + ("/".join(map(str, key)) if isinstance(key, tuple) else str(key))
        if isinstance(value, Mapping):
            flat |= flat_functions(value, f"{path}/")
        elif callable(value):
            flat[path] = cast(Callable[[jax.Array], jax.Array], value)
        else:
            raise ArgumentError(f"shard_fns[{path!r}] is a {type(value).__name__}, expected a function of one array")
    return flat


def fill(
    model: BaseNNXModule,
    source: CheckpointSource,
    where: Placement,
    *,
    input_shape: tuple[int, ...],
    int8_targets: Sequence[str] | None,
    load_in_8bit: bool,
    verbose: bool,
    progress: bool | None,
    check_others: Callable[[], None],
    allow_nonfinite: bool = False,
    donatable: bool = False,
    while_loading: Callable[[BaseNNXModule, Tree], object] | None = None,
) -> Tree:
    """Check everything from headers, then read the weights into the model; its parameters.

    `check_others` is called now and then, and raises what went wrong in another process. `while_loading` gets the
    model and its parameters as shapes, in a thread of its own, and is waited for. NaN and Inf among the weights
    are an error unless `allow_nonfinite`; mapped weights of our own files were checked when they were written.
    """
    plan, stored_int8 = plan_for(model, source)
    chosen = make_int8(model, int8_targets) if load_in_8bit else ()
    leaves = flatten(model.params)
    sharding = where.sharding(leaves)
    if unknown := sorted(set(where.functions) - set(leaves)):
        raise ArgumentError(
            f"shard_fns has paths that are no parameters: {', '.join(unknown[:8])}",
            hint=f"parameters look like {next(iter(leaves))}",
        )
    trace(model, input_shape)

    def arrived(path: str, array: jax.Array) -> jax.Array:
        array = owned(array) if donatable else array
        if path not in where.functions:
            return array
        placed = where.functions[path](array)
        if not isinstance(placed, jax.Array) or placed.shape != array.shape:
            kind = (
                f"an array of shape {placed.shape}" if isinstance(placed, jax.Array) else f"a {type(placed).__name__}"
            )
            raise ArgumentError(f"shard_fns[{path!r}] returned {kind}, expected the array that it was given, placed")
        return placed

    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    shapes = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding[p]) for p, leaf in leaves.items()}
    bar = progress_bar(f"Loading {source.path.name}", total, progress)
    with bar as show, _meanwhile(while_loading, model, shapes):

        def advance(share: float) -> None:
            check_others()
            if show is not None:
                show(share * total)

        dtypes = {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}
        params, model.load_report = execute(
            plan,
            sharding,
            dtypes,
            int8=set(chosen) - set(stored_int8),
            arrived=arrived if donatable or where.functions else None,
            advance=advance,
            finite=None if allow_nonfinite else "read" if source.manifest is not None else "all",
        )
    source.check_same()
    if verbose:
        print_sizes(source.checkpoint, params)
    tree = unflatten({path: params[path] for path in leaves})
    bind(model, tree)
    return tree


@contextmanager
def _meanwhile(
    function: Callable[[BaseNNXModule, Tree], object] | None, model: BaseNNXModule, shapes: Mapping[str, Any]
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


def plan_for(model: BaseNNXModule, source: CheckpointSource) -> tuple[Plan, Collection[str]]:
    """The plan for a model whose parameters are floats so far, and which of them the directory stores as int8."""
    table = OWN if source.manifest is not None else model.names
    stored = () if source.manifest is None else stored_int8(model, source.manifest, source.path / MANIFEST)
    leaves = flatten(model.params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    file = source.checkpoint.catalog
    integers = {path for path in model.buffers if not np.issubdtype(leaves[path].dtype, np.floating)}
    choices = {"tied": model.record.head.tied, "file": file, "integers": integers}
    plan = make_plan(shapes, model.canonical_paths(), table, source.tensors, **choices)
    take_dtypes(model, plan)
    return plan, stored


def take_dtypes(model: BaseNNXModule, plan: Plan) -> None:
    """Give the model's buffers, which have no values yet, the dtypes of the tensors that they are read from."""
    leaves = flatten(model.params)
    for path in model.buffers:
        stored = [plan.tensors[name].dtype for name in source_names({path: plan.expressions[path]})]
        dtype = jax.dtypes.canonicalize_dtype(reduce(jnp.promote_types, stored))
        bind(model, unflatten({path: jax.ShapeDtypeStruct(leaves[path].shape, dtype)}))


def stored_int8(model: BaseNNXModule, manifest: Manifest, file: Path) -> Collection[str]:
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


@lru_cache
def _check_runs(record: Decoder, policy: Policy, input_shape: tuple[int, int]) -> None:
    """Once for each kind of model in a process: its trace takes longer than all other planning."""
    model = LanguageModel(record, HFConfig({}), policy)

    def run(params: Tree, input_ids: jax.Array) -> CausalLMOutput:
        return forward(model, params, record.example({"input_ids": input_ids}))

    jax.eval_shape(run, model.params, jax.ShapeDtypeStruct(input_shape, jnp.int32))


def trace(model: BaseNNXModule, input_shape: tuple[int, ...]) -> None:
    """Run the model on shapes alone, so that what cannot work fails here."""
    if len(input_shape) != 2 or any(type(dim) is not int or dim < 1 for dim in input_shape):
        raise ArgumentError(f"input_shape={input_shape!r}, expected (batch, length), both at least 1")
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
