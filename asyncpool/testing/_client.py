"""One client of a proxy: what it says, and what of that reaches the server."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from ._transactions import Control, controls

if TYPE_CHECKING:
    from ._transaction_proxy import TransactionProxy

CANCEL, ENCRYPTIONS = 80877102, (80877103, 80877104)
TAGS = {"begin": b"BEGIN", "commit": b"COMMIT", "rollback": b"ROLLBACK"}
TOO_MUCH = 1 << 16


class Refused(Exception):
    """What a client wants cannot be done: an error, and in the midst of a transaction its end."""

    def __init__(self, code: bytes, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """It has a transaction state of its own, and its own names for prepared statements."""

    def __init__(
        self,
        proxy: TransactionProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
    ) -> None:
        self.savepoint = f"asyncpool_{number}"
        self.canceled = False
        self.is_waiting = False
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._prefix = f"asyncpool_{number}_".encode()
        self._open = False
        """Whether it has said BEGIN."""
        self._skipping = False
        """Whether, after an error, all is passed over until its Sync."""
        self._unanswered = False
        self._kinds: dict[bytes, Control | None] = {}
        self._portals: dict[bytes, Control | None] = {}

    async def greet(self, key: bytes) -> bool:
        """Begin a session; False: it was a request to cancel another's statement."""
        code, rest = await self._first()
        while code in ENCRYPTIONS:
            self._writer.write(b"N")
            code, rest = await self._first()
        if code == CANCEL:
            await self._proxy.cancel(rest[4:])
            return False
        if code & 0xFFFF:
            self._tell(b"v", struct.pack("!II", code & ~0xFFFF, 0))
        self._tell(b"R", bytes(4))
        for name, value in self._proxy.parameters.items():
            self._tell(b"S", name + b"\0" + value + b"\0")
        self._tell(b"K", struct.pack("!I", self._proxy.pid) + key)
        self._tell(b"Z", b"I")
        return True

    def drop(self) -> None:
        """Hang up, once it has heard what was said to it."""
        self._writer.close()

    async def talk(self) -> None:
        """Serve it until it leaves."""
        try:
            while (message := await self._read())[0] != b"X":
                kind, body = message
                match kind:
                    case b"Q":
                        await self._simple(body[:-1])
                        await self._ready()
                    case b"S":
                        await self._settle()
                        await self._ready()
                    case b"H":
                        await self._settle()
                    case b"P" | b"B" | b"D" | b"E" | b"C" | b"F" if not self._skipping:
                        await self._extended(kind, body)
                await self._writer.drain()
        except Refused as refused:
            self._complain(refused.code, str(refused), b"FATAL")
            await self._writer.drain()

    async def _simple(self, text: bytes) -> None:
        lexed = self._proxy.escapes
        pieces = controls(text, escapes=lexed, encoding=self._proxy.encoding)
        if not pieces:
            self._tell(b"I", b"")  # a ping: it waits for nobody
        for piece, kind in pieces:
            if not await self._take():
                return
            if self._proxy.escapes is not lexed and b"\\" in text:
                self._complain(b"0A000", "standard_conforming_strings changed before all was run")
                self._skipping = True
            elif kind is not None:
                await self._transact(kind)
            else:
                self._proxy.send(b"Q", piece + b"\0")
                await self._pump()
            if self._skipping:
                return

    async def _extended(self, kind: bytes, body: bytes) -> None:
        if not await self._take():
            return
        match kind:
            case b"P":
                name, text, rest = body.split(b"\0", 2)
                self._kinds[name] = self._kind_of(text)
                body = b"\0".join((self._own(name), text, rest))
            case b"B":
                portal, name, rest = body.split(b"\0", 2)
                self._portals[portal] = self._kinds.get(name)
                body = b"\0".join((portal, self._own(name), rest))
            case b"D" | b"C" if body.startswith(b"S"):
                body = b"S" + self._own(body[1:])
            case b"E":
                act = self._portals.get(body.split(b"\0", 1)[0])
                if act is not None:
                    await self._settle()
                    if not self._skipping:
                        await self._transact(act)
                    return
        self._proxy.send(kind, body)
        self._unanswered = True

    def _kind_of(self, text: bytes) -> Control | None:
        """What a text for the extended protocol does, which is one statement or an error."""
        pieces = controls(text, escapes=self._proxy.escapes, encoding=self._proxy.encoding)
        return pieces[0][1] if pieces else None

    async def _transact(self, kind: Control) -> None:
        """Do with a savepoint what was to be done with a transaction."""
        failed, tag = self._proxy.status == b"E", TAGS.get(kind)
        if kind == "refused":
            self._complain(b"0A000", "this ends the transaction that is to be rolled back")
            self._skipping = True
        elif kind == "begin" and failed:
            self._complain(b"25P02", "current transaction is aborted, commands ignored")
            self._skipping = True
        elif kind == "begin":
            self._open = True
        elif failure := await self._end(commit=kind == "commit" and not failed):
            self._tell(b"E", failure)
            self._skipping = True
        elif failed:
            tag = b"ROLLBACK"
        if tag is not None and not self._skipping:
            self._tell(b"C", tag + b"\0")

    async def _settle(self) -> None:
        """Have all that was said answered, but for the last word."""
        if self._unanswered:
            self._unanswered = False
            self._proxy.send(b"S", b"")
            await self._pump(extended=True)

    async def _ready(self) -> None:
        """Commit what was no transaction of its own, and say in which state the client is."""
        if self._proxy.holds(self) and not self._open:
            commit = self._proxy.status == b"T" and not self._skipping
            failure = await self._end(commit=commit)
            if failure:
                self._tell(b"E", failure)
        self._skipping = False
        self._tell(b"Z", self._proxy.status if self._open else b"I")
        self._proxy.leave(self)

    async def _take(self) -> bool:
        self.is_waiting = True
        try:
            await self._proxy.take(self)
        except Refused as refused:
            if self._open:
                raise
            self._complain(refused.code, str(refused))
            self._skipping = True
            return False
        finally:
            self.is_waiting = self.canceled = False
        return True

    async def _end(self, *, commit: bool) -> bytes | None:
        self._open = False
        failure = await self._proxy.end(self, commit=commit)
        self._proxy.leave(self)
        return failure

    async def _pump(self, *, extended: bool = False) -> None:
        """Pass on the server's answers, all of them even if nobody is there to hear them."""
        sent = 0
        while (message := await self._proxy.answer())[0] != b"Z":
            kind, body = message
            self._tell(kind, body)
            self._skipping |= kind == b"E"
            sent += len(body)
            if kind == b"G":
                await self._copy_in(extended=extended)
            elif sent > TOO_MUCH:
                sent = 0
                await self._hear_out()

    async def _copy_in(self, *, extended: bool) -> None:
        await self._hear_out()
        ended = False
        while True:
            try:
                kind, body = await self._read()
            except (OSError, asyncio.IncompleteReadError):
                kind, body = b"X", b""
            if kind == b"X":
                self._proxy.send(b"f", b"the client has gone\0")
                if extended:
                    self._proxy.send(b"S", b"")
                return
            if kind in (b"d", b"c", b"f"):
                self._proxy.send(kind, body)
                await self._proxy.drain()
                ended = kind != b"d"
            if ended and (kind == b"S" or not extended):
                # The server passes over a Sync in the midst of data: this is the one that it hears.
                if extended:
                    self._proxy.send(b"S", b"")
                return

    async def _hear_out(self) -> None:
        try:
            await self._writer.drain()
        except OSError:
            self._writer.close()

    def _own(self, name: bytes) -> bytes:
        return self._prefix + name if name.strip(b"\0") else name

    def _complain(self, code: bytes, message: str, severity: bytes = b"ERROR") -> None:
        fields = ((b"S", severity), (b"V", severity), (b"C", code), (b"M", message.encode()))
        self._tell(b"E", b"".join(name + value + b"\0" for name, value in fields) + b"\0")

    def _tell(self, kind: bytes, body: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def _first(self) -> tuple[int, bytes]:
        length, code = struct.unpack("!II", await self._reader.readexactly(8))
        return code, await self._reader.readexactly(length - 8)

    async def _read(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("!cI", await self._reader.readexactly(5))
        return kind, await self._reader.readexactly(length - 4)
