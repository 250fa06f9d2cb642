"""Converts between NNX modules and plain nested dicts of arrays.

Modules define a model; every hot path runs `jax.jit` on plain dicts, which cost a tenth per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, reduce
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

Tree = dict[str, Any]
Found = TypeVar("Found")
ADAPTERS = ("lora_A", "lora_B", "lora_magnitude")  # names of adapters among parameters


def _children(module: Any) -> Iterable[tuple[str, Any]]:
    if _kind(type(module)) is nnx.List:
        return ((str(index), child) for index, child in enumerate(module))
    return vars(module).items()


def _child(module: Any, name: str) -> Any:
    return module[int(name)] if _kind(type(module)) is nnx.List else getattr(module, name)


def params_of(module: Any) -> Tree:
    """Returns every `nnx.Param` below `module` as a nested dict; layers of a list are keyed "0", "1", ..."""
    tree: Tree = {}
    for name, child in _children(module):
        kind = _kind(type(child))
        if kind is None or name[0] == "_":
            continue
        if kind is nnx.Param:
            tree[name] = child.get_raw_value()
        elif below := params_of(child):
            tree[name] = below
    return tree


def variables_of(module: Any, prefix: str = "") -> dict[str, nnx.Param]:
    """Returns the `nnx.Param` objects below `module`, not their values, by their paths after `prefix`."""
    found: dict[str, nnx.Param] = {}
    for name, child in _children(module):
        kind = _kind(type(child))
        if kind is None or name[0] == "_":
            continue
        if kind is nnx.Param:
            found[f"{prefix}{name}"] = child
        else:
            found |= variables_of(child, f"{prefix}{name}/")
    return found


def of_kind(variables: Mapping[str, nnx.Param], kind: type[nnx.Param]) -> list[str]:
    """Returns the paths of the parameters that are of this `kind`."""
    return [path for path, variable in variables.items() if is_of(type(variable), kind)]


def modules_of(module: Any, kind: type[Found], prefix: str = "") -> Iterator[tuple[str, Found]]:
    """Yields `module` and the modules below it that are of this `kind`, each after "" or its path with a slash."""
    if is_of(type(module), kind):
        yield prefix, module
    for name, child in _children(module):
        if _kind(type(child)) in (nnx.List, nnx.Module) and name[0] != "_":
            yield from modules_of(child, kind, f"{prefix}{name}/")


def module_at(module: Any, names: Iterable[str]) -> Any:
    """Returns the module below `module` that is found by these names, one after the other."""
    return reduce(_child, names, module)


@cache
def _kind(found: type) -> type | None:
    """Returns a type's NNX kind, once per type: NNX answers isinstance slowly, and each call asks for thousands."""
    return next((kind for kind in (nnx.Param, nnx.List, nnx.Module) if is_of(found, kind)), None)


def is_of(found: type, kind: type) -> bool:
    """True if `found` is a `kind`. issubclass takes milliseconds, since it asks all subclasses of an NNX type."""
    return kind in found.__mro__


def unfilled(shape: tuple[int, ...], dtype: Any) -> nnx.Param:
    """A parameter of this dtype without a value yet.

    Not eager: NNX would split all that is made of it alike, and some optimizers make arrays of other shapes.
    """
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), eager_sharding=False)


def replica(module: Any) -> Any:
    """Returns a copy of a module with parameters of its own, in a thirtieth of the time of building one."""
    return replicator(module)()


def replicator(module: Any) -> Callable[[], Any]:
    """Returns a function that returns a new `replica` in each call."""
    leaves, structure = jax.tree.flatten(module)
    return lambda: jax.tree.unflatten(structure, leaves)


def bind(module: Any, params: Mapping[str, Any]) -> None:
    """Gives the parameters of `module` the values of a nested dict like that of `params_of`."""
    for name, value in params.items():
        child = _child(module, name)
        if isinstance(value, Mapping):
            bind(child, value)
        else:
            child.set_raw_value(value)


def annotate(module: Any, params: Mapping[str, Any]) -> None:
    """Says on each variable of `module` how its value in `params` is split over a mesh, where NNX looks for it."""
    for name, value in params.items():
        child = _child(module, name)
        if isinstance(value, Mapping):
            annotate(child, value)
        elif isinstance(value.sharding, NamedSharding):
            spec = value.sharding.spec
            child.set_metadata("out_sharding", PartitionSpec(*spec, *(None,) * (len(value.shape) - len(spec))))
            child.set_metadata("mesh", value.sharding.mesh)


def splits_of(module: Any) -> dict[str, NamedSharding]:
    """What `annotate` said, by path."""
    found: dict[str, NamedSharding] = {}
    for name, child in _children(module):
        kind = _kind(type(child))
        if kind is None or name[0] == "_":
            continue
        if kind is not nnx.Param:
            found |= {f"{name}/{path}": split for path, split in splits_of(child).items()}
        elif (spec := child.get_metadata("out_sharding", None)) is not None:
            found[name] = NamedSharding(child.get_metadata("mesh"), spec)
    return found


def split_of(parameter: nnx.Param) -> PartitionSpec | None:
    """What `annotate` said of the last two dimensions of a parameter, which may be stacked; None if nothing."""
    spec = parameter.get_metadata("out_sharding", None)
    return None if spec is None else PartitionSpec(*spec[-2:])


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by path, "model/layers/0/self_attn/q_proj/kernel"."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Returns the nested dict whose leaves `flat` lists by path."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree
