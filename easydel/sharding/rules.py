"""Ordered rules from the path of a parameter to its split.

A rule is a regular expression, searched in the path, and a PartitionSpec; the first match counts. Kernels are
[out, in], those of experts [expert, out, in]. A spec with fewer entries than the parameter has dimensions applies to
its last dimensions: stacked layers have one more in front, which is never split. Scales and offsets of parameters
that are stored by codes (`kernel_scale`, `kernel_offset`, `embedding_scale`, ...) follow the rule of the codes: their
blocks lie in the same order. If there is one per row, they have one dimension less, and the rule's last entry is left
out. What is the same for all rows (`kernel_factor`, `kernel_order`, `kernel_gain`) is small, and whole everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from jax.sharding import PartitionSpec

from easydel.sharding.axes import AxisName, PartitionAxis, names_in, without
from easydel.sharding.problems import refuse

Shape = tuple[int, ...]
Rules = Sequence[tuple[str, PartitionSpec]]
UNMATCHED_HINT = 'rules are for [out, in] kernels; a last rule (".*", PartitionSpec()) replicates what no other matches'

# The logical axis of each dimension, a field of PartitionAxis without its "_axis".
_TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)experts/(gate|up|gate_up)_proj/kernel$", ("expert", "mlp", "hidden")),
    (r"(^|/)experts/(gate|up|gate_up)_proj/bias$", ("expert", "mlp")),
    (r"(^|/)experts/down_proj/kernel$", ("expert", "hidden", "mlp")),
    (r"(^|/)experts/down_proj/bias$", ("expert", None)),
    (r"(^|/)embed_tokens[^/]*/embedding$", ("vocab", "hidden")),
    (r"(^|/)(global_)?relative_attention_bias/embedding$", (None, "head")),
    (r"(^|/)embedding$", (None, "hidden")),
    (r"(^|/)lm_head/kernel$", ("vocab", "hidden")),
    (r"(^|/)lm_head/bias$", ("vocab",)),
    (r"(^|/)(q|q_b|kv_b)_proj/kernel$", ("head", "hidden")),
    (r"(^|/)(q|q_b|kv_b)_proj/bias$", ("head",)),
    (r"(^|/)(k|v)_proj/kernel$", ("kv_head", "hidden")),
    (r"(^|/)(k|v)_proj/bias$", ("kv_head",)),
    (r"(^|/)o_proj/kernel$", ("hidden", "head")),
    (r"(^|/)(gate|up|gate_up)_proj/kernel$", ("mlp", "hidden")),
    (r"(^|/)(gate|up|gate_up)_proj/bias$", ("mlp",)),
    (r"(^|/)down_proj/kernel$", ("hidden", "mlp")),
    # Convolutions have a few numbers per channel.
    (r"conv[^/]*/(kernel|bias)$", ()),
    (r"(^|/)in_proj[^/]*/kernel$", ("mlp", "hidden")),
    (r"(^|/)dt_proj/kernel$", ("mlp", None)),
    (r"(^|/)(in_proj[^/]*|dt_proj)/bias$", ("mlp",)),
    (r"(^|/)x_proj/kernel$", (None, "mlp")),
    (r"(^|/)out_proj/kernel$", ("hidden", "mlp")),
    # Routers, latent projections (q_a, kv_a) and unusual kernels: any split is correct, and this one saves memory.
    (r"(^|/)kernel$", (None, "hidden")),
    # Norms, the other biases, and small vectors such as A_log, D, dt_bias.
    (r"", ()),
)
# Their hidden dimension also names the experts' axes: it is split over those that do not divide the number of experts.
_OTHERWISE_HIDDEN = {pattern for pattern, dims in _TABLE if {"expert", "hidden"} <= set(dims)}
_FOR_ALL_ROWS = re.compile(r".*/(?:kernel|embedding)_(?:factor|order|gain)")
_BESIDE_CODES = re.compile(r"(.*/(?:kernel|embedding))_(?:scale|offset)")


def default_rules(axis: PartitionAxis) -> Rules:
    """Returns the default rules in the mesh axes of `axis` (`resolve`d for the mesh); they match any path."""
    return [(pattern, _spec(dims, axis)) for pattern, dims in _TABLE]


def spec_for(path: str, shape: Shape, rules: Rules) -> PartitionSpec:
    """Returns one parameter's split, an entry per dimension. Raises ShardingError if no rule matches or fits."""
    return match_rules({path: shape}, rules)[path]


def match_rules(shapes: Mapping[str, Shape], rules: Rules) -> dict[str, PartitionSpec]:
    """Returns each parameter's split, with one entry per dimension.

    Raises ShardingError with all parameters that no rule matches, or whose rule has more entries than dimensions.
    """
    specs, problems = matched(shapes, rules)
    refuse(problems, UNMATCHED_HINT)
    return {path: _each_once(spec) for path, spec in specs.items()}


def matched(shapes: Mapping[str, Shape], rules: Rules) -> tuple[dict[str, PartitionSpec], list[str]]:
    """Returns the splits of `match_rules` and the parameters' problems. Raises ShardingError for malformed rules."""
    refuse([problem for rule in rules for problem in _malformed(rule)])
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    specs, problems = {}, []
    for path, shape in shapes.items():
        found = _find(path, compiled)
        if found is None:
            problems.append(f"no partition rule matches {path} {shape}")
            continue
        pattern, spec, codes = found
        dims = len(shape) if codes is None else len(shapes.get(codes, (*shape, 1)))
        missing = dims - len(spec)
        if missing < 0:
            problems.append(f"{path} {shape}: rule {pattern!r} has {len(spec)} entries, more than dimensions")
            continue
        specs[path] = PartitionSpec(*((None,) * missing + tuple(spec))[: len(shape)])
    return specs, problems


def unknown_axes(rules: Rules, names: Sequence[str]) -> list[str]:
    """Returns one problem for each rule that names axes which a mesh with axes `names` does not have."""
    return [
        f"rule {pattern!r} names {unknown}, the mesh has {list(names)}"
        for pattern, spec in rules
        if (unknown := [name for name in _names(spec) if name not in names])
    ]


def _find(
    path: str, rules: Sequence[tuple[re.Pattern[str], PartitionSpec]]
) -> tuple[str, PartitionSpec, str | None] | None:
    """Returns the first rule for `path`, and the path of the codes if the rule is for those that `path` scales."""
    if _FOR_ALL_ROWS.fullmatch(path):
        return "", PartitionSpec(), None
    scaled = match[1] if (match := _BESIDE_CODES.fullmatch(path)) else None
    for pattern, spec in rules:
        if scaled is not None and pattern.search(scaled):
            return pattern.pattern, spec, scaled
        if pattern.search(path):
            return pattern.pattern, spec, None
    return None


def _spec(dims: tuple[str | None, ...], axis: PartitionAxis) -> PartitionSpec:
    """Gives the hidden dimension the last choice of axes, so that adjacent kernels agree on a split dimension."""
    entries: list[AxisName] = [None] * len(dims)
    used: set[str] = set()
    for place in sorted(range(len(dims)), key=lambda place: dims[place] == "hidden"):
        wanted: AxisName = getattr(axis, f"{dims[place]}_axis") if dims[place] else None
        again = names_in(axis.expert_axis) if "expert" in dims and dims[place] == "hidden" else ()
        taken = used - set(again) | set(names_in(axis.mlp_axis) if again else ())
        entries[place] = without(wanted, taken)
        used.update(names_in(wanted))
    return PartitionSpec(*entries)


def _each_once(spec: PartitionSpec) -> PartitionSpec:
    used: set[str] = set()
    entries = []
    for entry in spec:
        entries.append(without(entry, used))
        used.update(names_in(entry))
    return PartitionSpec(*entries)


def _names(spec: PartitionSpec) -> list[str]:
    return list(chain.from_iterable(names_in(entry) for entry in spec))


def _malformed(rule: object) -> list[str]:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        return [f"rule {rule!r} is not a pair of a regular expression and a PartitionSpec"]
    pattern, spec = rule
    problems = []
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        problems.append(f"rule {pattern!r} is not a regular expression: {error}")
    if not isinstance(spec, PartitionSpec) or not all(_is_axis(entry) for entry in spec):
        return [*problems, f"rule {pattern!r}: {spec!r} is not a PartitionSpec of None, axis names and tuples of them"]
    names = _names(spec)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated and pattern not in _OTHERWISE_HIDDEN:
        problems.append(f"rule {pattern!r}: {spec} names {repeated} more than once")
    return problems


def _is_axis(entry: object) -> bool:
    return (
        entry is None
        or isinstance(entry, str)
        or (isinstance(entry, tuple) and all(isinstance(name, str) for name in entry))
    )
