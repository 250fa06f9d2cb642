"""The choice of parameters that stay at the bits of their checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from easydel.errors import listed
from easydel.stored import Split, device_counts, storable
from easydel.weights.keep import Kept, NotKept, coded_paths, keep, kept_as
from easydel.weights.plan import Plan

logger = logging.getLogger(__name__)


def kept(module: Any, plan: Plan, others: Collection[str], split: Split | None) -> Plan:
    """Declares the parameters of coded tensors as codes, but for `others`. Returns the plan that reads them so.

    `split` gives the sharding of each parameter: blocks are made so small that it cuts none. A warning tells which
    parameters become floats all the same, and why.
    """
    found = coded_paths(plan)
    if not found:
        return plan
    places = storable(module)
    reasons: dict[str, list[str]] = {}

    def chosen(paths: Collection[str], counts: Mapping[str, tuple[int, ...]]) -> dict[str, Kept]:
        kept: dict[str, Kept] = {}
        for path in paths:
            try:
                if path not in places:
                    raise NotKept("its module computes with floats")
                if not found[path]:
                    raise NotKept("only some of its layers or experts are quantized")
                kept[path] = kept_as(plan, path, counts.get(path) or (1,) * len(plan.shapes[path]))
            except NotKept as reason:
                reasons.setdefault(str(reason), []).append(path)
        return kept

    possible = chosen([path for path in found if path not in others], {})
    if split is not None and possible:
        forms = {path: stored.form for path, stored in possible.items()}
        possible = chosen(possible, device_counts(module, forms, split))
    if reasons:
        told = [f"{len(paths)} because {reason} ({', '.join(paths[:3])})" for reason, paths in reasons.items()]
        logger.warning("%d quantized parameters become floats:%s", sum(map(len, reasons.values())), listed(told))
    for path, stored in possible.items():
        places[path].store(stored.form, stored.scale, stored.shift)
    return keep(plan, possible) if possible else plan
