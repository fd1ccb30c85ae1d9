"""What a provider has to be able to do, and what all of them share.

A backend's methods block: they know nothing of event loops, so that a fixture can drive
them without one. `halt` is set when the caller was cancelled and wants to be let go.
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
    """The test server did not do what it was asked to."""


class ServerUnavailable(ServerError):
    """No PostgreSQL server could be found, or not the one that was asked for."""


class ServerUnsupported(ServerError):
    """This kind of server cannot do that: a test may skip, giving this error as its reason."""

    def __init__(self, source: Source, operation: str, reason: str) -> None:
        super().__init__(
            f"{operation} is not supported by the {source!r} server: {reason}; "
            "ASYNCPOOL_TEST_SERVER=binaries or =wheel chooses one that supports everything"
        )
        self.source = source
        self.operation = operation


class Absent(Exception):
    """A provider is not there: the message says what is missing, and what to do."""


class Halted(Exception):
    """The caller was cancelled: whoever gets this undoes what it began, and nobody sees it."""


class Backend(Protocol):
    """A server, driven by blocking calls."""

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
    def standby(self, halt: Event) -> Backend: ...
    def close(self) -> None: ...


RESERVED = {
    "max_connections": "pass max_connections= to postgres()",
    "port": "the server chooses a free one",
    "listen_addresses": "it listens on 127.0.0.1 alone",
    "unix_socket_directories": "see server.socket_dsn",
    "data_directory": "it is a folder of the server's own",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What the caller asked for: the number of connections (None: 50) and more settings."""

    max_connections: int | None = None
    settings: Mapping[str, SettingValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_connections is not None and self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")
        for name in self.settings:
            if advice := RESERVED.get(name.lower()):
                raise ValueError(f"{name!r} is not for settings: {advice}")
            if not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"{name!r} is not the name of a setting")

    def all_settings(self) -> dict[str, SettingValue]:
        """What a server of our own runs with."""
        # fsync is what costs. Without synchronous_commit or full_page_writes too, kill() could
        # lose what was committed, or tear a page.
        return {
            "fsync": False,
            **{name.lower(): value for name, value in self.settings.items()},
            "max_connections": self.max_connections or 50,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """A provider that answered: where its server comes from, and how to start one."""

    source: Source
    description: str
    open: Callable[[Spec, Event], Backend]


def as_text(value: SettingValue) -> str:
    """A setting's value as PostgreSQL reads it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def refuse(source: Source, operation: str, reason: str) -> NoReturn:
    raise ServerUnsupported(source, operation, reason)


_random = random.SystemRandom()  # a test may have seeded the module's own


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now; somebody may take it before we do."""
    # Below the range from which the kernel takes ports of outgoing connections (and bind(0)
    # as well): while the server is stopped, no client's socket must happen to get its port.
    while True:
        port = _random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
