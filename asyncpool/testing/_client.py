"""One client of the transaction proxy: which of its messages are passed on to the server."""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol

from ._server_session import CHUNK, ServerSession
from ._transactions import Control, controls

CANCEL, ENCRYPTIONS = 80877102, (80877103, 80877104)
TAGS = {
    "begin": b"BEGIN",
    "commit": b"COMMIT",
    "rollback": b"ROLLBACK",
    "deallocate": b"DEALLOCATE ALL",
}


class Refused(Exception):
    """The proxy refuses a client's request: the client gets an error.

    Inside a transaction the client is disconnected.
    """

    def __init__(self, code: bytes, message: str) -> None:
        super().__init__(message)
        self.code = code


class SupportsTurns(Protocol):
    """The part of the proxy that its clients use: they take turns on one server session."""

    async def acquire_turn(self, client: Client) -> None:
        """Wait for the client's turn."""

    def release_turn(self, client: Client) -> None:
        """End the client's turn."""

    async def end(self, client: Client, *, commit: bool) -> bytes | None:
        """End the client's transaction; return the server's error, if any."""

    def has_savepoint(self, client: Client) -> bool:
        """Whether a savepoint stands for the client's transaction."""
        ...

    async def cancel(self, key: bytes) -> None:
        """Cancel what a client runs."""


class Client:
    """A client with a transaction state and names of prepared statements of its own."""

    def __init__(
        self,
        proxy: SupportsTurns,
        server: ServerSession,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
    ) -> None:
        self.savepoint = f"asyncpool_{number}"
        self.canceled = False
        self.is_waiting = False
        self._proxy = proxy
        self._server = server
        self._reader = reader
        self._writer = writer
        self._prefix = f"asyncpool_{number}_".encode()
        self._open = False
        """Whether the client is in a transaction that it began with BEGIN."""
        self._skipping = False
        """Whether, after an error, the client's messages are ignored until its Sync."""
        self._unanswered = False
        """Whether the server has messages of the extended protocol that it has not answered."""
        self._kinds: dict[bytes, Control | None] = {}
        self._portals: dict[bytes, Control | None] = {}

    async def start_session(self, key: bytes) -> bool:
        """Begin a session; False: the client sent a cancel request instead."""
        code, rest = await self._first()
        while code in ENCRYPTIONS:
            self._writer.write(b"N")
            code, rest = await self._first()
        if code == CANCEL:
            await self._proxy.cancel(rest[4:])
            return False
        if code & 0xFFFF:
            self._write(b"v", struct.pack("!II", code & ~0xFFFF, 0))
        self._write(b"R", bytes(4))
        for name, value in self._server.parameters.items():
            self._write(b"S", name + b"\0" + value + b"\0")
        self._write(b"K", struct.pack("!I", self._server.pid) + key)
        self._write(b"Z", b"I")
        return True

    def close(self) -> None:
        """Close the connection once all written data is sent."""
        self._writer.close()

    async def serve(self) -> None:
        """Serve the client until it disconnects."""
        try:
            while (message := await self._read())[0] != b"X":
                kind, body = message
                match kind:
                    case b"Q":
                        await self._simple_query(body[:-1])
                        await self._ready()
                    case b"S":
                        await self._flush()
                        await self._ready()
                    case b"H":
                        await self._flush()
                    case b"P" | b"B" | b"D" | b"E" | b"C" | b"F" if not self._skipping:
                        await self._extended(kind, body)
                await self._writer.drain()
        except Refused as refused:
            self._write_error(refused.code, str(refused), b"FATAL")
            await self._writer.drain()

    async def _simple_query(self, text: bytes) -> None:
        lexed = self._server.escapes
        pieces = controls(text, escapes=lexed, encoding=self._server.encoding)
        if not pieces:
            self._write(b"I", b"")  # an empty query, such as a ping, needs no turn
        for piece, kind in pieces:
            if not await self._acquire_turn():
                return
            if self._server.escapes is not lexed and b"\\" in text:
                self._write_error(b"0A000", "standard_conforming_strings changed within the text")
                self._skipping = True
            elif kind is not None:
                await self._apply_control(kind)
            else:
                self._server.send(b"Q", piece + b"\0")
                await self._forward_answers()
            if self._skipping:
                return

    async def _extended(self, kind: bytes, body: bytes) -> None:
        if not await self._acquire_turn():
            return
        match kind:
            case b"P":
                name, text, rest = body.split(b"\0", 2)
                self._kinds[name] = self._kind_of(text)
                body = b"\0".join((self._server_name(name), text, rest))
            case b"B":
                portal, name, rest = body.split(b"\0", 2)
                self._portals[portal] = self._kinds.get(name)
                body = b"\0".join((portal, self._server_name(name), rest))
            case b"D" | b"C" if body.startswith(b"S"):
                body = b"S" + self._server_name(body[1:])
            case b"E":
                act = self._portals.get(body.split(b"\0", 1)[0])
                if act is not None:
                    await self._flush()
                    if not self._skipping:
                        await self._apply_control(act)
                    return
        self._server.send(kind, body)
        self._unanswered = True

    def _kind_of(self, text: bytes) -> Control | None:
        """Classify a text of the extended protocol, which is one statement or an error."""
        pieces = controls(text, escapes=self._server.escapes, encoding=self._server.encoding)
        return pieces[0][1] if pieces else None

    async def _apply_control(self, kind: Control) -> None:
        """Apply BEGIN, COMMIT or ROLLBACK to the client's savepoint."""
        failed, tag = self._server.status == b"E", TAGS.get(kind)
        if kind == "refused":
            self._write_error(
                b"0A000", "this statement would end the transaction of the rollback pool"
            )
            self._skipping = True
        elif kind in ("begin", "deallocate") and failed:
            self._write_error(b"25P02", "current transaction is aborted, commands ignored")
            self._skipping = True
        elif kind == "begin":
            self._open = True
        elif kind == "deallocate":
            await self._close_statements()
        elif failure := await self._end(commit=kind == "commit" and not failed):
            self._write(b"E", failure)
            self._skipping = True
        elif failed:
            tag = b"ROLLBACK"
        if tag is not None and not self._skipping:
            self._write(b"C", tag + b"\0")

    async def _close_statements(self) -> None:
        """Close the client's own prepared statements; all clients share the server's session."""
        for name in self._kinds:
            self._server.send(b"C", b"S" + self._server_name(name) + b"\0")
        self._kinds.clear()
        self._server.send(b"S", b"")
        while (await self._server.answer())[0] != b"Z":
            pass

    async def _flush(self) -> None:
        """Get the answers to all messages sent so far, except ReadyForQuery."""
        if self._unanswered:
            self._unanswered = False
            self._server.send(b"S", b"")
            await self._forward_answers(extended=True)

    async def _ready(self) -> None:
        """Commit statements outside a transaction, and send the client's ReadyForQuery."""
        if self._proxy.has_savepoint(self) and not self._open:
            commit = self._server.status == b"T" and not self._skipping
            failure = await self._end(commit=commit)
            if failure:
                self._write(b"E", failure)
        self._skipping = False
        self._write(b"Z", self._server.status if self._open else b"I")
        self._proxy.release_turn(self)

    async def _acquire_turn(self) -> bool:
        self.is_waiting = True
        try:
            await self._proxy.acquire_turn(self)
        except Refused as refused:
            if self._open:
                raise
            self._write_error(refused.code, str(refused))
            self._skipping = True
            return False
        finally:
            self.is_waiting = self.canceled = False
        return True

    async def _end(self, *, commit: bool) -> bytes | None:
        self._open = False
        failure = await self._proxy.end(self, commit=commit)
        self._proxy.release_turn(self)
        return failure

    async def _forward_answers(self, *, extended: bool = False) -> None:
        """Pass on all of the server's answers; read them even if the client has disconnected."""
        sent = 0
        while (message := await self._server.answer())[0] != b"Z":
            kind, body = message
            self._write(kind, body)
            self._skipping |= kind == b"E"
            sent += len(body)
            if kind == b"G":
                await self._copy_in(extended=extended)
            elif sent > CHUNK:
                sent = 0
                await self._drain()

    async def _copy_in(self, *, extended: bool) -> None:
        await self._drain()
        ended = False
        while True:
            try:
                kind, body = await self._read()
            except (OSError, asyncio.IncompleteReadError):
                kind, body = b"X", b""
            if kind == b"X":
                self._server.send(b"f", b"the client has disconnected\0")
                if extended:
                    self._server.send(b"S", b"")
                return
            if kind in (b"d", b"c", b"f"):
                self._server.send(kind, body)
                await self._server.drain()
                ended = kind != b"d"
            if ended and (kind == b"S" or not extended):
                # The server ignores a Sync in the midst of data: this is the one that counts.
                if extended:
                    self._server.send(b"S", b"")
                return

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError:
            self._writer.close()

    def _server_name(self, name: bytes) -> bytes:
        return self._prefix + name if name.strip(b"\0") else name

    def _write_error(self, code: bytes, message: str, severity: bytes = b"ERROR") -> None:
        fields = ((b"S", severity), (b"V", severity), (b"C", code), (b"M", message.encode()))
        self._write(b"E", b"".join(name + value + b"\0" for name, value in fields) + b"\0")

    def _write(self, kind: bytes, body: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def _first(self) -> tuple[int, bytes]:
        length, code = struct.unpack("!II", await self._reader.readexactly(8))
        return code, await self._reader.readexactly(length - 8)

    async def _read(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("!cI", await self._reader.readexactly(5))
        return kind, await self._reader.readexactly(length - 4)
