"""The protocol of a test server's backend, and the types that all providers share.

A backend's methods block and use no event loop, so a fixture can call them without one. The event
`halt` is set when the caller was cancelled: the method then raises `Halted` soon.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Event

Source = Literal["dsn", "testcontainers", "binaries", "wheel"]
StopMode = Literal["smart", "fast", "immediate"]
SettingValue = str | int | float | bool

SOURCES: tuple[Source, ...] = get_args(Source)
STOP_MODES: tuple[StopMode, ...] = get_args(StopMode)


class ServerError(Exception):
    """An operation of the test server failed."""


class ServerUnavailable(ServerError):
    """No PostgreSQL server was found, or not the requested one."""


class ServerUnsupported(ServerError):
    """This kind of server does not support the operation.

    A test may skip with this error as its reason.
    """

    def __init__(self, source: Source, operation: str, reason: str) -> None:
        super().__init__(
            f"{operation} is not supported by the {source!r} server: {reason}; "
            "ASYNCPOOL_TEST_SERVER=binaries or =wheel chooses one that supports everything"
        )
        self.source = source
        self.operation = operation


class Absent(Exception):
    """A provider is not available: the message says what is missing, and what to do."""


class Halted(Exception):
    """The caller was cancelled. Each handler undoes its own work; no caller sees this error."""


class Backend(Protocol):
    """A server, controlled by blocking calls."""

    @property
    def source(self) -> Source: ...
    @property
    def description(self) -> str: ...
    @property
    def dsn(self) -> str: ...
    @property
    def socket_dsn(self) -> str | None: ...
    @property
    def state(self) -> str: ...

    def start(self, halt: Event) -> None: ...
    def stop(self, mode: StopMode, timeout: float, halt: Event) -> None: ...
    def kill(self, halt: Event) -> None: ...
    def pause(self, halt: Event) -> None: ...
    def resume(self, halt: Event) -> None: ...
    def promote(self, timeout: float, halt: Event) -> None: ...
    def standby(self, settings: Mapping[str, SettingValue], halt: Event) -> Backend: ...
    def follow(self, primary: Backend, timeout: float, halt: Event) -> None: ...
    def pause_replay(self, timeout: float, halt: Event) -> None: ...
    def resume_replay(self, halt: Event) -> None: ...
    def close(self) -> None: ...


RESERVED = {
    "max_connections": "pass max_connections= to postgres()",
    "port": "the server chooses a free one",
    "listen_addresses": "the server listens on 127.0.0.1 only",
    "unix_socket_directories": "see server.socket_dsn",
    "data_directory": "the server has a temporary folder of its own",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """The requested `max_connections` (None: 50) and further settings."""

    max_connections: int | None = None
    settings: Mapping[str, SettingValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_connections is not None and self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")
        for name in self.settings:
            if advice := RESERVED.get(name.lower()):
                raise ValueError(f"{name!r} is not allowed in settings: {advice}")
            if not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"{name!r} is not the name of a setting")

    def changed(self, settings: Mapping[str, SettingValue]) -> Spec:
        """Return a specification with further settings, which override those of this one."""
        return Spec(self.max_connections, {**self.settings, **settings})

    def all_settings(self) -> dict[str, SettingValue]:
        """All settings of a server that we start."""
        # Only fsync is off, since it is what costs time. With synchronous_commit or
        # full_page_writes off as well, kill() could lose a committed transaction or tear a page.
        return {
            "fsync": False,
            **{name.lower(): value for name, value in self.settings.items()},
            "max_connections": self.max_connections or 50,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """An available provider: the source of its server, and how to start one."""

    source: Source
    description: str
    open: Callable[[Spec, Event], Backend]


def as_text(value: SettingValue) -> str:
    """Format a setting's value as PostgreSQL reads it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def refuse(source: Source, operation: str, reason: str) -> NoReturn:
    raise ServerUnsupported(source, operation, reason)


_random = random.SystemRandom()  # a test may have seeded the generator of the module `random`


def free_port() -> int:
    """Find a port of 127.0.0.1 that is free now; another process may still take it first."""
    # The range is below the one from which the kernel takes ports for outgoing connections and
    # for bind(0): while the server is stopped, no client's socket may get its port.
    while True:
        port = _random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
