"""An asyncio-native connection pool for psycopg 3."""

from asyncpool._blocks.listener import Gap
from asyncpool._blocks.notifications import Notifications
from asyncpool._core.budget import Budget
from asyncpool._core.label import label
from asyncpool._core.within import within
from asyncpool._psycopg.connection import Connection
from asyncpool.cluster import (
    Cluster,
    ClusterExplanation,
    ClusterHealth,
    HostStatus,
    ReadPool,
)
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
    "Gap",
    "HealthReport",
    "HostStatus",
    "LeaseInfo",
    "Notifications",
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
