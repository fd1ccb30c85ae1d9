"""The faults, in the order of the table, and where each is played."""

from __future__ import annotations

from benchmarks.faults import _access, _callers, _outages, _ways
from benchmarks.faults._scene import Scene

SCENES: dict[str, Scene] = {
    each.key: each for each in (*_outages.SCENES, *_access.SCENES, *_ways.SCENES, *_callers.SCENES)
}
