"""The adapters of a connection, which tell when they change.

Converted statements are kept from one execution to the next; see `sending.py`. They are
out of date as soon as a dumper, a loader or a type is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from psycopg.adapt import AdaptersMap
from psycopg.types import TypeInfo, TypesRegistry


class Adapters(AdaptersMap):
    """A `psycopg.adapt.AdaptersMap` that calls `on_change` before each change.

    Args:
        template: the adapters to begin with; later changes of these have no effect here.
        on_change: called with this map.
    """

    def __init__(self, template: AdaptersMap, on_change: Callable[[AdaptersMap], None]) -> None:
        super().__init__(template)
        self._on_change = on_change
        self.types = _Types(template.types, partial(_types_change, ref(self)))

    def register_dumper(self, cls: type | str | None, dumper: type[Any]) -> None:
        """See `psycopg.adapt.AdaptersMap.register_dumper`."""
        self._on_change(self)
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Any]) -> None:
        """See `psycopg.adapt.AdaptersMap.register_loader`."""
        self._on_change(self)
        super().register_loader(oid, loader)


class _Types(TypesRegistry):
    def __init__(self, template: TypesRegistry, on_change: Callable[[], None]) -> None:
        super().__init__(template)
        self._on_change = on_change

    def add(self, info: TypeInfo) -> None:
        self._on_change()
        super().add(info)

    def clear(self) -> None:
        self._on_change()
        super().clear()


def _types_change(adapters: ref[Adapters]) -> None:
    if (alive := adapters()) is not None:
        alive._on_change(alive)
