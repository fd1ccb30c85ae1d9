"""The rows: what happens to the servers while a pool is under load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks._network import Network
from benchmarks.cluster._peers import OURS, PEERS, RETRY, TOKENS
from benchmarks.cluster._trial import PAIRS, Trial
from benchmarks.cluster._trio import multi_host, port

BY_ROUTE = tuple(name for name in PEERS if name != TOKENS)
"""The pools of a row in which no read waits for a write."""

LIVES = 5
"""How often the row without a fault opens the pool: a pool may choose its hosts by chance."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        key: its name on the command line.
        title: its name in the table.
        play: starts the load, causes the fault and finishes the trial.
        pools: the pools that play it.
        promoted: whether the first standby is the primary at the end.
        synchronous: whether a commit waits for the first standby.
        balance: whether the figure is the share of one host in each second.
    """

    key: str
    title: str
    play: Callable[[Trial], Awaitable[None]]
    pools: tuple[str, ...] = BY_ROUTE
    promoted: bool = False
    synchronous: bool = False
    balance: bool = False


async def _balance(trial: Trial) -> None:
    for _ in range(LIVES):
        await trial.start()
        await trial.finish(3.0)
        await trial.close()


async def _killed(trial: Trial) -> None:
    await trial.start()
    trial.broken()
    await trial.trio.first.kill()
    await trial.wait(4.0)
    await trial.trio.first.start()
    trial.back()
    await trial.finish(8.0)


async def _paused(trial: Trial) -> None:
    await trial.start()
    trial.broken()
    await trial.trio.first.pause()
    await trial.wait(5.0)
    await trial.trio.first.resume()
    trial.back()
    await trial.finish(8.0)


async def _lagging(trial: Trial) -> None:
    await trial.start()
    trial.broken()
    await trial.trio.first.pause_replay()
    await trial.wait(8.0)
    await trial.trio.first.resume_replay()
    trial.back()
    await trial.finish(5.0)


async def _cut_off(trial: Trial) -> None:
    trio = trial.trio
    with Network(trio.first.dsn) as network:
        await trial.start(multi_host(trio.primary.dsn, network.dsn, trio.second.dsn))
        trial.broken()
        network.fall_silent()
        await trial.wait(6.0)
        network.speak()
        trial.back()
        await trial.finish(8.0)


async def _switchover(trial: Trial) -> None:
    await trial.start()
    trial.broken()
    await trial.trio.primary.stop()
    await trial.trio.fail_over()
    await trial.finish(6.0)


async def _failover(trial: Trial) -> None:
    trio = trial.trio
    await trial.start()
    trial.broken()
    await trio.primary.kill()
    await trio.fail_over()
    await trial.wait(3.0)
    await trio.primary.follow(trio.first)
    trial.back(port(trio.primary.dsn))
    await trial.finish(8.0)


async def _own(trial: Trial) -> None:
    await trial.start(rates=PAIRS)
    await trial.finish(8.0)


ROWS: dict[str, Row] = {
    row.key: row
    for row in (
        Row("balance", f"nothing happens, {LIVES} pools one after another", _balance, balance=True),
        Row("killed", "a standby is killed for 4 s", _killed),
        Row("paused", "a standby does not answer for 5 s (SIGSTOP)", _paused),
        Row("cut-off", "all packets to and from a standby are dropped for 6 s", _cut_off),
        Row("lagging", "a standby does not replay for 8 s", _lagging),
        Row(
            "switchover",
            "the primary is stopped, a standby promoted",
            _switchover,
            promoted=True,
        ),
        Row(
            "failover",
            "the primary is killed, a standby promoted; the old primary becomes a standby",
            _failover,
            promoted=True,
            synchronous=True,
        ),
        Row(
            "own",
            "each read asks for what was written just before",
            _own,
            pools=(OURS, TOKENS, *(name for name in PEERS if name not in {OURS, RETRY, TOKENS})),
        ),
    )
}
