"""The faults, in the order of the table, and where each is played."""

from __future__ import annotations

from benchmarks.faults import _access, _callers, _others, _outages, _ways
from benchmarks.faults._scene import Scene

SCENES: dict[str, Scene] = {
    each.key: each
    for module in (_outages, _access, _ways, _others, _callers)
    for each in module.SCENES
}
