"""A network that can drop all packets: the server's address is in a network namespace of its own.

A veth pair leads into the namespace, where a small process forwards to the real server. To drop
packets, both ends send to hardware addresses that do not exist: packets are lost in both directions
with no error, as behind a firewall that drops them or with a cut cable. With the program `nft`, a
firewall in the namespace can refuse every packet instead.

The namespace belongs to the forwarding process, which ends with its standard input. So nothing
stays behind, even if the test is killed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

FORWARDER = """
import asyncio, ctypes, os, socket, subprocess, sys

NEWNET = 0x40000000
host, port = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)

def must(result):
    if result:
        sys.exit(os.strerror(ctypes.get_errno()))

def read_line():
    return sys.stdin.readline().strip() or sys.exit("the owner has ended")

outside = os.open("/proc/self/ns/net", os.O_RDONLY)
must(libc.unshare(NEWNET))
inside = os.open("/proc/self/ns/net", os.O_RDONLY)
print("unshared", inside, flush=True)
address = read_line()
subprocess.run(["ip", "-batch", "-"], input=read_line().replace(";", "\\n"), text=True, check=True)
listener = socket.create_server((address, 0))
# A socket stays in the namespace in which it was made; sockets to the server are made outside.
must(libc.setns(outside, NEWNET))
# With keepalives it notices, once packets pass again, connections that clients have abandoned.
listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
limits = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 60}
for option, value in limits.items():
    listener.setsockopt(socket.IPPROTO_TCP, option, value)

async def one_way(source, sink):
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()

async def forward(reader, writer):
    try:
        answers, upstream = await asyncio.open_connection(host, int(port))
        ways = [
            asyncio.create_task(one_way(reader, upstream)),
            asyncio.create_task(one_way(answers, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        upstream.close()
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(forward, sock=listener)
    print(listener.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)

asyncio.run(main())
"""

HERE, THERE = "02:00:00:00:00:01", "02:00:00:00:00:02"
NOBODY, NOWHERE = "02:00:00:00:00:03", "02:00:00:00:00:04"


REFUSING = """
table inet refusing {
  chain input {
    type filter hook input priority 0;
    iifname "there" meta l4proto tcp reject with tcp reset
  }
}
"""


class NoNetwork(Exception):
    """This machine cannot provide such a network; the message says why."""


class Network:
    """A controllable network to the server of a connection string; `dsn` connects through it.

    Raises:
        NoNetwork: on entry: the network cannot be set up.
    """

    def __init__(self, dsn: str) -> None:
        self._given = dsn
        parts = conninfo_to_dict(dsn)
        self._server = str(parts["host"]), str(parts["port"])
        # From the block that is reserved for tests of networks, which no real network uses.
        # Source: https://www.rfc-editor.org/rfc/rfc2544#appendix-C.2.2
        place = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        base = random.randrange(0, 256, 4)
        self._here, self._there = f"{place}.{base + 1}", f"{place}.{base + 2}"
        self._device = f"hush{os.urandom(4).hex()}"
        self._process: subprocess.Popen[str] | None = None
        self._namespace = ""
        self.dsn = ""

    def __enter__(self) -> Self:
        if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
            raise NoNetwork("network namespaces need Linux, root and the program `ip`")
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORWARDER, *self._server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self._connect(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        # This removes the other end too; both are gone already if the process has ended.
        with suppress(subprocess.CalledProcessError):
            self._ip(f"link del {self._device}")
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()  # type: ignore[union-attr]
            self._process.stderr.close()  # type: ignore[union-attr]

    def fall_silent(self) -> None:
        """Drop every packet from now on, in both directions."""
        # A new hardware address empties the neighbour table, so it is set first.
        self._ip(
            f"link set {self._device} address {NOBODY}",
            f"neigh replace {self._there} lladdr {NOWHERE} dev {self._device} nud permanent",
        )

    def speak(self) -> None:
        """Let packets pass again."""
        self._ip(
            f"link set {self._device} address {HERE}",
            f"neigh replace {self._there} lladdr {THERE} dev {self._device} nud permanent",
        )

    def refuse(self) -> None:
        """Answer every TCP packet with a reset from now on.

        Raises:
            NoNetwork: this machine has no `nft`.
        """
        self._nft(REFUSING)

    def admit(self) -> None:
        """Stop refusing packets."""
        self._nft("delete table inet refusing")

    def _nft(self, rules: str) -> None:
        nft, enter = (shutil.which(name) for name in ("nft", "nsenter"))
        if nft is None or enter is None:
            raise NoNetwork("a firewall needs the programs `nft` and `nsenter`")
        subprocess.run(
            [enter, f"--net={self._namespace}", nft, "-f", "-"],
            input=rules,
            text=True,
            capture_output=True,
            check=True,
        )

    def _connect(self, process: subprocess.Popen[str]) -> None:
        _, inside = self._read_line(process).split()
        self._namespace = f"/proc/{process.pid}/fd/{inside}"
        peer = f"peer name there address {THERE} netns {process.pid}"
        try:
            self._ip(
                f"link add {self._device} address {HERE} type veth {peer}",
                f"addr add {self._here}/30 dev {self._device}",
                f"link set {self._device} up",
            )
        except subprocess.CalledProcessError as error:
            raise NoNetwork(error.stderr) from error
        there = (
            f"addr add {self._there}/30 dev there",
            "link set there up",
            f"neigh replace {self._here} lladdr {HERE} dev there nud permanent",
        )
        print(self._there, ";".join(there), sep="\n", file=process.stdin, flush=True)
        port = self._read_line(process)
        self.speak()
        self.dsn = make_conninfo(
            self._given, host=self._there, port=port, sslmode="disable", gssencmode="disable"
        )

    def _read_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        assert process.stderr is not None
        if not (line := process.stdout.readline().strip()):
            raise NoNetwork(f"no network namespace: {process.stderr.read().strip()}")
        return line

    def _ip(self, *commands: str) -> None:
        subprocess.run(
            [str(shutil.which("ip")), "-batch", "-"],
            input="\n".join(commands),
            text=True,
            capture_output=True,
            check=True,
        )
