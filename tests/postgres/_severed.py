"""A proxy that knows where a message ends, and breaks off at a chosen statement."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from ._tools import Before

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ["cut before", "cut in the message", "cut after", "cut in the answer", "hang"]
"""How a connection ends, by where the statement and its answer are. Besides them there is "garble",
which has PostgreSQL itself end the session."""
POOLER_MODES = ["FATAL before", "FATAL after", "FATAL of old before", "FATAL of old after"]
"""A pooler says an error and hangs up; one of old sends no untranslated severity."""

_CANCEL = 80877102


def farewell(code: str, *, old: bool) -> bytes:
    """The message that a pooler sends before it hangs up."""
    fields = {"S": "FATAL", "V": "FATAL", "C": code, "M": "server conn crashed?"}
    if old:
        del fields["V"]
    body = b"".join(f"{key}{value}\0".encode() for key, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


class Severed(Before):
    """A proxy of which `choose` says how the connection of a message ends.

    Args:
        dsn: the server's.
        choose: called with each message of a client; returns one of the modes, or None to pass on.
    """

    def __init__(self, dsn: str, choose: Callable[[bytes], str | None]) -> None:
        super().__init__(dsn)
        self._choose = choose
        self.severed = 0
        """How many connections it has broken off."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                answers, upstream = await asyncio.open_connection(self._host, self._port)
                ends.append(upstream)
                pair = Pair(answers, writer)
                back = asyncio.ensure_future(pair.pass_back())
                try:
                    await self._forward(reader, upstream, pair)
                finally:
                    back.cancel()
        finally:
            for end in ends:
                end.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, pair: Pair
    ) -> None:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!ii", head)
        upstream.write(head + await reader.readexactly(length - 8))
        if code == _CANCEL:
            await upstream.drain()
            await pair.answers.read()
            return
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            mode = self._choose(head + body)
            if mode is None:
                upstream.write(head + body)
                continue
            self.severed += 1
            await self._sever(mode, head + body, reader, upstream, pair)
            return

    async def _sever(
        self,
        mode: str,
        message: bytes,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        pair: Pair,
    ) -> None:
        await upstream.drain()
        if mode == "garble":
            upstream.write(b"\1" + message[1:])  # no such message: PostgreSQL ends the session
            await pair.ended.wait()
        if mode == "hang":
            pair.deaf = True
            await asyncio.Event().wait()
        if mode == "cut in the message":
            upstream.write(message[: len(message) // 2])
            await upstream.drain()
        elif "after" in mode or mode == "cut in the answer":
            await self._let_run(mode, message, reader, upstream, pair)
        if mode.startswith("FATAL"):
            pair.client.write(farewell("08P01", old="old" in mode))
            with suppress(OSError):
                await pair.client.drain()
                pair.client.write_eof()
                await asyncio.sleep(0.05)

    async def _let_run(
        self,
        mode: str,
        message: bytes,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        pair: Pair,
    ) -> None:
        """Pass on up to the next Sync, and wait for the server's ReadyForQuery."""
        pair.deaf, pair.ready = True, asyncio.Event()
        upstream.write(message)
        while not message.startswith((b"S", b"Q")):
            head = await reader.readexactly(5)
            message = head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            upstream.write(message)
        await pair.ready.wait()
        if mode == "cut in the answer":
            pair.client.write(pair.kept[: len(pair.kept) // 2])
            with suppress(OSError):
                await pair.client.drain()


class Pair:
    """The way back from the server to the client."""

    def __init__(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.answers, self.client = answers, client
        self.deaf = False
        """Whether the client gets no more."""
        self.kept = b""
        """What the client did not get."""
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the server has hung up."""

    async def pass_back(self) -> None:
        """Copy what the server says."""
        with suppress(OSError):
            while data := await self.answers.read(65536):
                if self.deaf:
                    self.kept += data
                    if data[-6:-1] == b"Z\0\0\0\5":
                        self.ready.set()
                else:
                    self.client.write(data)
                    await self.client.drain()
        self.ready.set()
        self.ended.set()
        if not self.deaf:
            self.client.close()
