"""Events of a pool: in the log, in memory, and without secrets."""

from __future__ import annotations

import logging

import pytest

from asyncpool._core.events import KEPT, SAME, Events, fields
from asyncpool._core.redact import redacted

HIDDEN = "hunter2"


def test_only_the_last_are_kept() -> None:
    """The ring stays bounded, however long the pool lives."""
    events = Events()
    for number in range(KEPT + 10):
        events.note(float(number), "lost", str(number), logging.INFO)
    assert [each.text for each in events.last] == [str(n) for n in range(10, KEPT + 10)]


def test_the_same_at_once_is_one_event_that_is_counted() -> None:
    """Fifty connections that break together leave room for what came before."""
    events = Events()
    for number in range(50):
        events.note(number * SAME / 100, "lost", "broke", logging.INFO)
    events.note(50.0, "lost", "broke", logging.INFO)
    assert [each.times for each in events.last] == [50, 1]


def test_a_line_in_the_log_has_its_facts_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    """The pool's name, the kind, and the others under names that begin with `pool_`."""
    caplog.set_level(logging.INFO)
    Events().record("main", 1.0, "leak", "who has it", logging.WARNING, {"task": "t", "age": 2.0})
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("asyncpool", "WARNING")
    assert record.getMessage() == "pool 'main': who has it"
    found = {name: vars(record)[name] for name in ("pool", "pool_event", "pool_task", "pool_age")}
    assert found == {"pool": "main", "pool_event": "leak", "pool_task": "t", "pool_age": 2.0}


def test_no_field_is_one_that_logging_has_itself() -> None:
    """This holds for each fact's name, with any factory of log records."""
    reserved = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}
    facts = dict.fromkeys(["name", "msg", "args", "process", "message", "taskName"], 1)
    assert not reserved & fields("main", "leak", **facts).keys()


@pytest.mark.parametrize(
    "said",
    [
        f"could not use password={HIDDEN} host=a",
        f"could not use PASSWORD = '{HIDDEN}' host=a",
        f"could not use password='{HIDDEN} \\' {HIDDEN}",
        f"could not use sslpassword={HIDDEN}",
        f'could not parse "postgresql://me:{HIDDEN}@host/db"',
        f"could not parse postgres://me:a@{HIDDEN}@host:5432/db",
        f"could not parse postgres://:{HIDDEN}@host/db?password={HIDDEN}&x=1",
        f'missing "=" after "{HIDDEN}" in connection info string',
        f'invalid connection option "{HIDDEN}"',
        f'invalid percent-encoded token: "%{HIDDEN}"',
        f'could not translate host name "{HIDDEN}@host" to address',
        f"failed to resolve host '{HIDDEN}@host': Name or service not known",
    ],
)
def test_what_libpq_repeats_of_a_conninfo_has_no_password(said: str) -> None:
    """Also where it took a part of it for something else."""
    assert HIDDEN not in redacted(said)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["://a:", "://", "password ", "password='", '"', 'URI: "', "key="])
def test_a_long_text_is_redacted_in_linear_time(part: str) -> None:
    """With the square of its length it would take minutes."""
    assert redacted(part * 400_000)


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "me"',
        'connection to server at "127.0.0.1", port 5432 failed: Connection refused',
        'database "shop" does not exist',
        "fe_sendauth: no password supplied",
        'relation "keys" does not exist',
    ],
)
def test_what_has_no_secret_is_left_as_it_is(said: str) -> None:
    """A person needs the whole text."""
    assert redacted(said) == said
