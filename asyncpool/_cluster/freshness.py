"""Which host has replayed a token: known from the last look, asked for, or else the primary.

A token may stand for what no host has: the end of a log that was lost with an old primary, or what
somebody has written into a cookie. The primary serves such reads, as it would without a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container

import anyio

from asyncpool._cluster.host import Host
from asyncpool._cluster.members import Members
from asyncpool._cluster.replay import Replay
from asyncpool._cluster.token import Token
from asyncpool._cluster.watch import Watch
from asyncpool._core.settings import duration

FAR = 1 << 36
"""Bytes beyond the primary's last known position where no token can be: no server writes 64 GiB of
log between two looks."""
FIND_LIMIT = 2.0
"""Seconds in which each host is looked at, for a token of a later timeline than was seen."""
FIND_AGAIN = 1.0
"""Seconds for which a timeline is not sought again that no host had."""
FIND_PAUSE = 0.02
"""Seconds after which the hosts are asked for again whether they were looked at."""


class Freshness:
    """Chooses hosts that have replayed a token.

    Args:
        members: the hosts.
        watch: looks at them.
        wait: seconds to wait for a standby, before the primary is used.
    """

    def __init__(self, members: Members, watch: Watch, wait: float) -> None:
        self._members = members
        self._watch = watch
        self._wait = duration("token_wait", wait)
        self._absent, self._absent_until = 0, -math.inf
        """The timeline that no host was found to have, and the instant until which that holds."""
        self._replays: dict[str, Replay] = {}
        """By the names of the hosts."""

    async def host_after(
        self,
        token: Token,
        limit: float,
        without: Container[Host] = (),
        own: Host | None = None,
    ) -> Host | None:
        """Return a host that has replayed a token: a standby that has or soon will, or the primary.

        Args:
            token: the token.
            limit: seconds that it may take.
            without: hosts that were tried before.
            own: the host of the task's session, which no other standby stands in for.

        Returns:
            None if there is none now.
        """
        self._watch.enter()
        members, wait = self._members, min(self._wait, max(limit, 0.0))
        if 0 < members.leader.timeline < token.timeline:
            await self._find_timeline(token.timeline, min(limit, FIND_LIMIT))
        hosts = [host for host in members.readable if host not in without]
        if own in hosts:
            hosts = [own]
        if fresh := [host for host in hosts if self._is_known_to_have(host, token)]:
            return self._least(fresh)
        near = [host for host in hosts if host.role == "standby" and host.lag <= self._wait]
        if near and wait > 0 and not self._is_absurd(token):
            host = self._least(near)
            if await self._replay_of(host).reach(token, wait) and not host.reason:
                return host
        primary = members.primary
        if primary is None or primary in without or primary.error is not None or primary.drained:
            return None
        return primary

    def _is_known_to_have(self, host: Host, token: Token) -> bool:
        if host is self._members.primary:
            return token.timeline <= self._members.leader.timeline
        if (sight := host.sight) is None or token.lsn > sight.position:
            return False
        return token.timeline <= max(sight.timeline, self._replay_of(host).timeline)

    def _is_absurd(self, token: Token) -> bool:
        """Whether the token is so far on that the primary cannot have given it."""
        primary = self._members.primary
        known = None if primary is None else primary.sight
        return known is not None and token.lsn > known.position + FAR

    def _least(self, hosts: Collection[Host]) -> Host:
        """Return the host with the fewest reads under way, of several the least recently chosen."""
        best = min(hosts, key=lambda host: host.reads.under_way)
        readable = self._members.readable
        readable.remove(best)
        readable.append(best)
        return best

    def _replay_of(self, host: Host) -> Replay:
        replay = self._replays.get(host.name)
        if replay is None or replay.pool is not host.pool:
            for name in self._replays.keys() - self._members.hosts.keys():
                del self._replays[name]
            replay = self._replays[host.name] = Replay(host.pool, self._watch.spawn)
        return replay

    async def _find_timeline(self, timeline: int, limit: float) -> None:
        """Look for a promotion that another process has seen: the old primary may still answer.

        It ends when each host was looked at anew. What was not found then is not sought again for a
        while, so that a made-up token does not keep all hosts busy.
        """
        members, began = self._members, self._members.changes.clock()
        if timeline >= self._absent and began < self._absent_until:
            return
        for host in members.all():
            host.trouble.set()
        with anyio.move_on_after(limit):
            while members.leader.timeline < timeline:
                if all(host.looked_from >= began for host in members.all()):
                    self._absent = timeline
                    self._absent_until = members.changes.clock() + FIND_AGAIN
                    return
                with anyio.move_on_after(FIND_PAUSE):
                    await members.changes.wait()
