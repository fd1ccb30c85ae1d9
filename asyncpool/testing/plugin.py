"""The pytest plugin by a name inside the package, for `-p asyncpool.testing.plugin`.

pytest itself loads `_asyncpool_pytest`, which is quick to import.
"""

from _asyncpool_pytest import (
    asyncpool_dsn,
    asyncpool_rollback_pool,
    asyncpool_server,
    pytest_report_collectionfinish,
)

__all__ = [
    "asyncpool_dsn",
    "asyncpool_rollback_pool",
    "asyncpool_server",
    "pytest_report_collectionfinish",
]
