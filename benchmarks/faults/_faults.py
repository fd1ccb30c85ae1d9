"""All faults, in the order of the tables."""

from __future__ import annotations

from benchmarks.faults import _access, _cancellations, _failover, _networks, _outages
from benchmarks.faults._fault import Fault

FAULTS: dict[str, Fault] = {
    each.key: each
    for module in (_outages, _access, _networks, _failover, _cancellations)
    for each in module.FAULTS
}
