"""The back-off between failed connects."""

from __future__ import annotations

from random import Random

import pytest

from asyncpool._core.outage import CAP, FIRST, GRACE, IDLE_CAP, LAPSE, REFUSED_CAP, Outage, delay
from asyncpool.faults import Fault


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.4), (5, 0.5), (6, 0.5)]
)
def test_delays_double_up_to_the_cap_and_are_at_most_halved(failures: int, longest: float) -> None:
    """Each delay is between half of its maximum and all of it ("equal jitter")."""
    random = Random(0)
    delays = [delay(failures, random) for _ in range(1000)]
    assert longest / 2 <= min(delays) < 0.6 * longest
    assert 0.9 * longest < max(delays) <= longest


def test_a_long_outage_neither_overflows_nor_exceeds_the_cap() -> None:
    """Days of failures are a normal case."""
    assert CAP / 2 <= delay(1_000_000, Random(0)) <= CAP


def test_the_same_seed_gives_the_same_delays() -> None:
    """The simulator depends on that."""
    first, second = Random(7), Random(7)
    assert [delay(n, first) for n in range(1, 9)] == [delay(n, second) for n in range(1, 9)]


def test_an_outage_is_true_from_its_first_failure_to_its_end() -> None:
    """The outage keeps its start and the last error."""
    outage = Outage(Random(0))
    assert not outage
    outage.failed(10.0, OSError("first"), began=9.0)
    outage.failed(12.0, OSError("second"), began=11.0)
    assert outage
    assert (outage.failures, outage.since, str(outage.error)) == (2, 10.0, "second")
    outage.end()
    assert not outage
    assert outage.error is None


def test_before_the_first_failure_there_is_no_error_and_no_delay() -> None:
    """The error is None and every instant is 0."""
    outage = Outage(Random(0))
    assert (outage.since, outage.retry_at, outage.idle_retry_at) == (0.0, 0.0, 0.0)
    assert outage.error is None
    assert outage.fault is None
    assert not any((outage.failures, outage.reported, outage.ever_worked))


def test_the_next_connect_waits_for_the_delay() -> None:
    """The delay starts at the failure."""
    outage = Outage(Random(0))
    outage.failed(10.0, OSError(), began=9.0)
    assert 10.0 + FIRST / 2 <= outage.retry_at <= 10.0 + FIRST


def test_after_its_end_an_outage_begins_anew() -> None:
    """The delays start over, and `reconnect_failed` is called again."""
    outage = Outage(Random(0))
    for at in range(10):
        outage.failed(float(at), OSError(), began=at - 0.5)
    outage.reported = True
    outage.end()
    outage.failed(100.0, OSError(), began=99.0)
    assert (outage.since, outage.reported) == (100.0, False)
    assert outage.retry_at <= 100.0 + FIRST


def test_connects_begun_before_the_outage_do_not_extend_the_delay() -> None:
    """Parallel connects that fail together count as one failure, with the last error."""
    outage = Outage(Random(0))
    outage.failed(10.0, OSError("first"), began=9.0)
    retry_at = outage.retry_at
    for began in (9.0, 10.0):  # up to and including that instant
        outage.failed(10.1, OSError("last"), began=began)
    assert (outage.failures, outage.retry_at, str(outage.error)) == (1, retry_at, "last")


def test_the_delay_is_short_while_a_request_waits() -> None:
    """The cap is half a second; it is one second if none waits or the server has no room."""
    outage = Outage(Random(0))
    for at in range(100):
        outage.failed(float(at), OSError(), began=at - 0.5)
    assert CAP / 2 <= outage.retry_at - at <= CAP <= outage.idle_retry_at - at <= IDLE_CAP
    outage.failed(100.0, OSError(), began=99.5, fault=Fault.CAPACITY)
    assert outage.retry_at == outage.idle_retry_at


def test_where_access_is_refused_the_delays_are_longer() -> None:
    """The cap is one second while a request waits; otherwise it doubles up to 30 seconds."""
    outage = Outage(Random(0))
    for _ in range(10):
        at = outage.idle_retry_at + 0.1
        outage.failed(at, OSError(), began=at - 0.1, fault=Fault.ACCESS)
        assert IDLE_CAP / 2 <= outage.retry_at - at <= IDLE_CAP
        assert outage.retry_at - at <= 2 * (outage.idle_retry_at - at)
    assert REFUSED_CAP / 2 <= outage.idle_retry_at - at <= REFUSED_CAP


def test_waiting_is_useless_in_a_long_outage_or_if_access_was_never_given() -> None:
    """Access that was given before may return in a moment, as after a password change."""
    outage = Outage(Random(0))
    outage.failed(0.0, OSError(), began=-1.0, fault=Fault.ACCESS)
    assert outage.is_unavailable(0.0, 1e9)
    outage.failed(1.0, OSError(), began=0.5)
    outage.failed(6.0, OSError(), began=5.5)
    assert not outage.is_unavailable(9.9, 10.0)
    assert outage.is_unavailable(10.0, 10.0)
    outage.failed(10.0, OSError(), began=9.5, fault=Fault.CAPACITY)
    assert not outage.is_unavailable(10.0, 10.0)
    outage.end()
    assert not outage.is_unavailable(20.0, 0.0)
    outage.ever_worked = True
    for at in range(20, 20 + int(GRACE), 3):
        outage.failed(float(at), OSError(), began=at - 1.0, fault=Fault.ACCESS)
    assert not outage.is_unavailable(20.0 + GRACE - 0.01, 1e9)
    assert outage.is_unavailable(20.0 + GRACE, 1e9)


def test_an_outage_lapses_when_no_connect_is_due() -> None:
    """The next failure begins another outage."""
    outage = Outage(Random(0))
    outage.failed(0.0, OSError(), began=-1.0)
    outage.reported = True
    outage.end()
    assert not outage.reported
    outage.failed(0.0, OSError(), began=-1.0)
    outage.reported = True
    later = outage.idle_retry_at + LAPSE
    assert not outage.has_lapsed(later)
    assert outage.is_unavailable(later, 1.0)
    assert outage.has_lapsed(later + 0.1)
    assert not outage.is_unavailable(later + 0.1, 1.0)
    outage.failed(1000.0, OSError(), began=999.0)
    assert (outage.failures, outage.since, outage.reported) == (1, 1000.0, False)
    outage.failed(1001.0, OSError(), began=1000.5)
    assert (outage.failures, outage.since) == (2, 1000.0)
