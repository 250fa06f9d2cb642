"""The placement of arrays: the mesh of devices, and the mesh axes that each dimension is split over."""

from easydel.sharding.axes import AXES, AxisName, PartitionAxis
from easydel.sharding.mesh import make_mesh
from easydel.sharding.placement import Footprint, bytes_per_device, check_heads, constrain, shardings
from easydel.sharding.rules import Rules, Shape, default_rules, match_rules, spec_for

__all__ = [
    "AXES",
    "AxisName",
    "Footprint",
    "PartitionAxis",
    "Rules",
    "Shape",
    "bytes_per_device",
    "check_heads",
    "constrain",
    "default_rules",
    "make_mesh",
    "match_rules",
    "shardings",
    "spec_for",
]
