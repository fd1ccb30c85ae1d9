"""An asyncio-native connection pool for psycopg 3."""

from importlib import import_module
from typing import TYPE_CHECKING

from asyncpool._blocks.listener import Gap
from asyncpool._blocks.notifications import Notifications
from asyncpool._core.budget import Budget
from asyncpool._core.label import label
from asyncpool._core.within import within
from asyncpool._psycopg.connection import Connection
from asyncpool.errors import (
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolForked,
    PoolTimeout,
    PoolUnavailable,
    PoolWrongLoop,
    ReleaseError,
    TooManyRequests,
)
from asyncpool.faults import Fault, classify
from asyncpool.health import HealthReport
from asyncpool.insight import ConnectionInfo, Event, Explanation, LeaseInfo, WaiterInfo
from asyncpool.manager import PoolManager
from asyncpool.null_pool import AsyncNullConnectionPool
from asyncpool.pool import AsyncConnectionPool
from asyncpool.sizing import Advice, Expectation
from asyncpool.stats import PoolStats, Times

if TYPE_CHECKING:
    from asyncpool.cluster import (
        Cluster,
        ClusterExplanation,
        ClusterHealth,
        HostStatus,
        OwnWrites,
        ReadPool,
    )
    from asyncpool.fleet import Fleet, FleetStats

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "Budget",
    "Cluster",
    "ClusterExplanation",
    "ClusterHealth",
    "Connection",
    "ConnectionInfo",
    "Event",
    "Expectation",
    "Explanation",
    "Fault",
    "Fleet",
    "FleetStats",
    "Gap",
    "HealthReport",
    "HostStatus",
    "LeaseInfo",
    "Notifications",
    "OwnWrites",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolForked",
    "PoolManager",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "PoolWrongLoop",
    "ReadPool",
    "ReleaseError",
    "Times",
    "TooManyRequests",
    "WaiterInfo",
    "classify",
    "label",
    "within",
]

_LATER = "fleet", "cluster"
"""Modules that are imported at the first use of one of their names; most programs need neither."""


if not TYPE_CHECKING:  # else type checkers would take any name for one of the package

    def __getattr__(name: str) -> object:
        for later in _LATER if name in __all__ or name in _LATER else ():
            module = import_module(f"asyncpool.{later}")
            if name == later:
                return module
            if name in module.__all__:
                return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
