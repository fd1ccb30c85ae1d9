"""psycopg's private parts that this package uses, and whether it can use them.

Private is a name with a leading underscore, and all of `psycopg.generators` and `psycopg.waiting`,
which psycopg does not document. This is the only module that imports such names. The attributes
that others use on psycopg's objects are listed in `ATTRIBUTES`.

On a version that was not tried, or where a name is missing, `SUPPORTED` is False. The pool then
uses psycopg's own connection and cursor, and public names only; the names below are placeholders.
"""

from __future__ import annotations

import os
import pkgutil
import re
from typing import TYPE_CHECKING

import psycopg

__all__ = [
    "BLOCK_END",
    "BLOCK_START",
    "COPY_END",
    "COPY_OUT_END",
    "NOTIFIES",
    "PIPELINE_END",
    "READY_R",
    "READY_W",
    "SUPPORTED",
    "UNSUPPORTED_REASON",
    "VERSION",
    "WAIT_R",
    "WAIT_W",
    "PostgresQuery",
    "Prepare",
    "PrepareManager",
    "generators",
]

TRIED = (3, 2, 9), (3, 4)
"""The first version that was tried, and the first that was not."""

MODULES = {
    "psycopg._preparing": "Prepare PrepareManager",
    "psycopg._queries": "PostgresQuery",
    "psycopg.generators": "copy_end copy_from execute fetch_many notifies send",
    "psycopg.waiting": "READY_R READY_W WAIT_R WAIT_W",
}
"""Private modules, and what is used of each."""

ATTRIBUTES = {
    "psycopg.AsyncConnection": (
        "_adapters _autocommit _check_connection_ok _get_tx_start_command _notice_handler"
        " _notice_handlers _notify_handlers _num_transactions _pipeline _prepared _rollback_gen"
        " _start_query _tpc _try_cancel"
    ),
    "psycopg.AsyncCopy": "_end_copy_out_gen",
    "psycopg.AsyncCursor": (
        "_adapters _check_result_for_fetch _check_results _closed _conn _execmany_returning"
        " _execute_gen _last_query _make_row _pgconn _pos _query _reset _results _row_factory"
        " _rowcount _select_current_result _set_results _start_query _tx"
    ),
    "psycopg.AsyncPipeline": "_conn _enter_gen _exit _exit_gen _sync_gen",
    "psycopg.AsyncTransaction": (
        "_enter_gen _exit_gen _get_commit_commands _get_enter_commands _get_rollback_commands"
        " _outer_transaction _rollback_gen _stack_index"
    ),
    "psycopg._preparing.PrepareManager": (
        "_counts _names _prepared_idx _rotate _to_flush clear get maintain_gen maybe_add_to_cache"
        " prepare_threshold prepared_max validate"
    ),
    "psycopg._queries.PostgresQuery": (
        "_order _want_formats convert dump formats params query types"
    ),
    "psycopg.errors": "_NO_TRACEBACK",
    "psycopg.pq.PGconn": "_encoding",
}
"""Private attributes, by the class or module that must have them."""

OPTIONAL = {
    "_get_connection_params": "psycopg 3.3: parses the arguments of `connect`, and no more",
    "_loaders_changed": "psycopg 3.3: resets a cursor's loaders",
    "_notifies_backlog": "psycopg 3.2.4: notifications outside of notifies()",
    "_pipeline_nolock": "psycopg 3.3: enters a pipeline where the caller holds the lock",
    "_pool": "the pool of a connection; a pool sets it",
    "_register_loader_callback": "psycopg 3.3: calls `_loaders_changed`",
    "_WaitTimeout": "psycopg 3.3.6: the error of a wait with a time limit",
}
"""Private names that some versions do not have, and the use of each."""


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as (3, 3, 9)."""
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def why_unsupported(version: str) -> str | None:
    """Return why psycopg's private parts cannot be used; None: they can."""
    if not TRIED[0] <= version_of(version) < TRIED[1]:
        return f"psycopg {version} was not tried"
    for owner, names in (MODULES | ATTRIBUTES).items():
        for name in names.split():
            if not _has(owner, name):
                return f"{owner} has no {name}"
    return None


def _has(owner: str, name: str) -> bool:
    """Whether a module or class has a name, or its instances do as set in `__init__`."""
    try:
        found = pkgutil.resolve_name(owner)
    except (ImportError, AttributeError):
        return False
    constructors = (vars(base).get("__init__") for base in getattr(found, "__mro__", ()))
    codes = (getattr(each, "__code__", None) for each in constructors)
    return hasattr(found, name) or any(code and name in code.co_names for code in codes)


VERSION = version_of(psycopg.__version__)
UNSUPPORTED_REASON = why_unsupported(
    os.environ.get("ASYNCPOOL_TEST_PSYCOPG") or psycopg.__version__
)
"""Why psycopg's private parts are not used; None if they are. The variable pretends a version."""
SUPPORTED = UNSUPPORTED_REASON is None

if TYPE_CHECKING or SUPPORTED:
    from psycopg import generators, waiting
    from psycopg._preparing import Prepare, PrepareManager
    from psycopg._queries import PostgresQuery

    WAIT_R, WAIT_W = int(waiting.WAIT_R), int(waiting.WAIT_W)
    READY_R, READY_W = int(waiting.READY_R), int(waiting.READY_W)

    # Code objects, which identify psycopg's generators.
    BLOCK_START: object = psycopg.AsyncTransaction._enter_gen.__code__
    BLOCK_END: object = psycopg.AsyncTransaction._exit_gen.__code__
    PIPELINE_END: object = psycopg.AsyncPipeline._exit_gen.__code__
    COPY_END: object = generators.copy_end.__code__
    COPY_OUT_END: object = psycopg.AsyncCopy._end_copy_out_gen.__code__
    NOTIFIES: object = generators.notifies.__code__
else:
    generators = Prepare = PostgresQuery = None
    PrepareManager = object
    WAIT_R = WAIT_W = READY_R = READY_W = 0
    BLOCK_START = BLOCK_END = PIPELINE_END = COPY_END = COPY_OUT_END = NOTIFIES = None
