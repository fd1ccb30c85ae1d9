"""Whether a server answers at all, without a session.

Needed only where all connections of a host's pool are in use and none is returned: then no look
tells a host that hangs from one with long statements. The server answers one byte to the question
for TLS, before it asks who is there; this takes no place of `max_connections`.
Source: https://www.postgresql.org/docs/current/protocol-message-formats.html, SSLRequest
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

from asyncpool._cluster.addresses import LOCAL, Address

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


async def answers(address: Address, limit: float) -> bool:
    """Whether a server answers there within some seconds; True where that cannot be asked."""
    if address.host == LOCAL or address.host.startswith("@"):
        return True
    writer = None
    try:
        async with asyncio.timeout(limit):
            if address.socket is not None:
                reader, writer = await asyncio.open_unix_connection(address.socket)
            else:
                host = address.hostaddr or address.host
                reader, writer = await asyncio.open_connection(host, address.port)
            writer.write(SSL_REQUEST)
            await reader.read(1)  # the end of the stream is an answer too
            return True
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            with suppress(OSError):
                writer.transport.abort()
