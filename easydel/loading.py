"""The steps of a load once its arguments are understood and its headers read: the model, and its weights."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ConfigError, UnsupportedModelError, listed
from easydel.families import Family
from easydel.garbage import collected_later
from easydel.generate.settings import read_defaults
from easydel.layers.stack import check_head_splits
from easydel.model import BaseNNXModule
from easydel.module import LanguageModel
from easydel.options import LoadOptions, Reading
from easydel.policy import Policy
from easydel.prepare import Prepared, prepare
from easydel.processes import agree, await_processes, digest
from easydel.progress import progress_bar
from easydel.report import print_sizes
from easydel.sharding.placement import Placement
from easydel.source import CheckpointSource
from easydel.tree import Tree, annotate, bind, unflatten
from easydel.weights.arrays import Arrived
from easydel.weights.by_hosts import moved, read_placements
from easydel.weights.execute import execute
from easydel.weights.layer_kinds import kinds_of_layers
from easydel.weights.plan import head_differs
from easydel.weights.sources import TensorSource

logger = logging.getLogger(__name__)
# Reading consists of many short calls, each of which needs the interpreter for a moment. While another thread traces,
# each of them would otherwise wait 5 ms for it.
SWITCH_SECONDS = 1e-4
SLACK = 64  # sizes may be products of others, and belong to parts that this family does not have


@collected_later()
def build_model(
    family: Family, config: HFConfig, policy: Policy, source: CheckpointSource, *, dequantize: bool | None = None
) -> BaseNNXModule:
    """Returns the model without values, checked against the sizes of the checkpoint and of the mesh.

    Unless the checkpoint is dequantized, layers of which it stores other weights by codes are not stacked together.
    As in transformers, a head is not tied if the file holds one that differs from the token vectors. With an encoder
    this is refused: whether its vectors are the decoder's depends on the same setting.
    """
    check_sizes(config, source.tensors)
    record, names = family.record(config)
    tied = record.head.tied and source.manifest is None
    if tied and head_differs(source.names or names, source.tensors, record.vectors_at):
        if record.has_encoder:
            problem = "the config says that the head is tied, but it differs from the decoder's token vectors"
            hint = "set tie_word_embeddings to false, in config.json or by config_kwargs"
            raise UnsupportedModelError(problem, file=source.path, hint=hint)
        logger.warning("%s: head and token vectors differ: not tied, whatever the config says", source.path)
        config = family.configured(config, {"tie_word_embeddings": False})
        record, names = family.record(config)
    if policy.scan_layers and not dequantize and isinstance(record, Decoder):
        numbers = source.layers or range(len(record.blocks))
        kinds = kinds_of_layers(source.stored(dequantize), source.manifest.int8 if source.manifest else (), numbers)
        blocks = zip(record.blocks, kinds, strict=True)
        record = replace(record, blocks=tuple(replace(block, stored=kind) for block, kind in blocks))
    gguf = source.checkpoint.format == "gguf"
    origin = source.path if gguf or source.path.is_dir() else source.path.parent
    model = BaseNNXModule(record, config, policy, names, origin)
    model.layers_in_file = source.layers
    model.generation_config = read_defaults(origin, config, own=gguf)
    if policy.mesh is not None:
        check_heads_of(model, policy.mesh)
    return model


def check_sizes(config: HFConfig, tensors: Mapping[str, TensorSource]) -> None:
    """Raises ConfigError for sizes far beyond the checkpoint's, before anything of that size is built."""
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
    """Raises ShardingError if the heads of some layer cannot be split over the mesh."""
    blocks = {block for stack in model.record.layer_stacks.values() for block in stack}
    check_head_splits(blocks, replace(model.policy, mesh=mesh))


@collected_later()
def load_weights(
    model: BaseNNXModule, source: CheckpointSource, options: LoadOptions, check_others: Callable[[], None]
) -> Tree:
    """Checks everything from headers, then reads the weights into the model. Returns its parameters.

    `check_others` is called now and then, and raises if another process failed.
    """
    prepared = prepare(model, source, options)
    agree_on(model, source, prepared, check_others)
    annotate(model, unflatten(prepared.shapes))  # programs that are compiled while weights are read ask for it
    params = read(prepared, model, source, options, check_others)
    source.check_same()
    if options.reading.verbose:
        print_sizes(source.checkpoint, params)
    tree = unflatten({path: params[path] for path in prepared.shapes})
    bind(model, tree)
    return tree


def agree_on(
    model: BaseNNXModule, source: CheckpointSource, prepared: Prepared, check_others: Callable[[], None]
) -> None:
    """Raises ProcessError unless all processes have the same mesh, and on one that they share, the same model on it."""
    policy, leaves = model.policy, prepared.shapes
    shared = not all(leaf.sharding.is_fully_addressable for leaf in leaves.values() if leaf.sharding is not None)
    mesh = "none" if policy.mesh is None else dict(policy.mesh.shape)
    agree(
        "load a model", {"mesh": mesh, "devices": "of several processes" if shared else "of one process"}, check_others
    )
    if not shared:
        return
    tensors = sorted((name, tensor.shape, str(tensor.dtype)) for name, tensor in source.checkpoint.items())
    parameters = [(path, leaf.shape, str(leaf.dtype), str(leaf.sharding)) for path, leaf in leaves.items()]
    choices = {name: getattr(policy, name) for name in ("dtype", "param_dtype", "precision", "scan_layers", "remat")}
    settings = {f"generation_config.{key}": value for key, value in model.generation_config.to_dict().items()}
    config = {f"config.{key}": json.dumps(value) for key, value in model.config.to_dict().items()}
    sums = {"tensors of the checkpoint": digest(tensors), "parameters": digest(parameters)}
    agree("load a model", config | settings | choices | sums, check_others)


def read(
    prepared: Prepared,
    model: BaseNNXModule,
    source: CheckpointSource,
    options: LoadOptions,
    check_others: Callable[[], None],
) -> dict[str, jax.Array]:
    """Returns the parameters by path, and stores the cost of reading them in `model.load_report`.

    NaN and Inf among the weights are an error, unless they are allowed; mapped weights of our own files were checked
    when they were written.
    """
    reading, total = options.reading, prepared.nbytes
    streamed = {tensor.file: tensor.source for tensor in source.checkpoint.values() if tensor.source is not None}
    if jax.process_count() > 1:
        for file in streamed.values():
            file.leave_hash("each process receives its own part")
    bar = progress_bar(f"Loading {source.path.name}", total, reading.progress)
    with bar as show, _meanwhile(reading.while_loading, model, prepared.shapes):

        def advance(share: float) -> None:
            check_others()
            if show is not None:
                show(share * total)

        placements = {path: leaf.sharding for path, leaf in prepared.shapes.items()}
        moving = read_placements(prepared.plan, placements, prepared.rounded, model.policy.mesh)
        arrived = _arrival(options.placement, reading)
        params, model.load_report = execute(
            prepared.plan,
            placements | moving,
            {path: np.dtype(leaf.dtype) for path, leaf in prepared.shapes.items()},
            rounded=prepared.rounded,
            arrived=arrived and (lambda path, array: array if path in moving else arrived(path, array)),
            advance=advance,
            finite=None if reading.allow_nonfinite else "read" if source.manifest is not None else "all",
        )
        if moving:
            await_processes(check_others)
        for path in moving:
            array = moved(params.pop(path), placements[path])
            params[path] = array if arrived is None else arrived(path, array)
    model.load_report.hashes = {str(name): file.verdict() for name, file in streamed.items()}
    return params


def _arrival(placement: Placement, reading: Reading) -> Arrived | None:
    """Returns the function to apply to each array as it arrives, if there is one."""
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
    """Returns the same values in memory that JAX owns: donation cannot reuse that of a mapped file or an arena."""
    return jax.jit(jnp.copy, out_shardings=array.sharding)(array)
