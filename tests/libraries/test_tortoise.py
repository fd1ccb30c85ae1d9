"""tortoise-orm: models, nested transactions and a burst, on its own subclass of the pool."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from asyncpool import compat

tortoise: Any = pytest.importorskip("tortoise")
models: Any = pytest.importorskip("tortoise.models")
client: Any = pytest.importorskip("tortoise.backends.psycopg.client")
transactions: Any = pytest.importorskip("tortoise.transactions")
exceptions: Any = pytest.importorskip("tortoise.exceptions")


def make_models() -> Any:
    """A module with one model."""
    fields = tortoise.fields
    body = {
        "id": fields.IntField(primary_key=True),
        "name": fields.TextField(),
        "__module__": "library_models",
    }
    module = types.ModuleType("library_models")
    sys.modules[module.__name__] = module
    module.Thing = type("Thing", (models.Model,), body)  # type: ignore[attr-defined]
    return module


@pytest.mark.usefixtures("installed")
async def test_models_and_transactions(database: str) -> None:
    """The library's subclass of the pool, defined before ours is installed, stands on ours."""
    params = conninfo_to_dict(database)
    names = {"host": "host", "port": "port", "user": "user", "password": "password"}
    credentials: dict[str, Any] = {key: params[name] for key, name in names.items()}
    credentials |= {"database": params["dbname"], "minsize": 1, "maxsize": 4}
    backend = {"engine": "tortoise.backends.psycopg", "credentials": credentials}
    module = make_models()
    thing = module.Thing
    await tortoise.Tortoise.init(
        config={
            "connections": {"default": backend},
            "apps": {"models": {"models": [module.__name__], "default_connection": "default"}},
        }
    )
    try:
        await tortoise.Tortoise.generate_schemas()
        connection = tortoise.connections.get("default")
        assert isinstance(connection._pool, compat.AsyncConnectionPool)
        assert isinstance(connection._pool, client.AsyncConnectionPool)
        await asyncio.gather(*(thing.create(name=str(n)) for n in range(30)))
        assert await thing.all().count() == 30
        await fail(thing)
        async with transactions.in_transaction():
            await thing.create(name="outer")
            await fail(thing)
        assert await thing.all().count() == 31
        with pytest.raises(exceptions.IntegrityError):
            await thing.create(id=1, name="again")
        assert connection._pool.stats().leased == 0
    finally:
        await tortoise.Tortoise.close_connections()
        del sys.modules[module.__name__]


async def fail(thing: Any) -> None:
    """Undo a transaction, or a part of the one that is open."""
    with contextlib.suppress(LookupError):
        async with transactions.in_transaction():
            await thing.create(name="undone")
            raise LookupError
