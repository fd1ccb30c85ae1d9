"""The classes of the pool's errors and their attributes."""

from __future__ import annotations

import psycopg
import pytest

import asyncpool
from asyncpool import errors
from asyncpool.errors import PoolError, PoolTimeout, ReleaseError, TooManyRequests

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_an_operational_error_of_psycopg(error: type[Exception]) -> None:
    """Code written for psycopg_pool catches them with `except psycopg.OperationalError`."""
    assert issubclass(error, PoolError)
    assert issubclass(error, psycopg.OperationalError)


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_public(error: type[Exception]) -> None:
    """The package exports each error under its name."""
    assert getattr(asyncpool, error.__name__) is error
    assert error.__name__ in asyncpool.__all__


@pytest.mark.parametrize("error", ALL)
def test_every_error_can_be_made_of_its_message_alone(error: type[Exception]) -> None:
    """Users' tests can raise them from fakes."""
    assert str(error("what happened")) == "what happened"


def test_misuse_is_also_pythons_own_kind_of_error() -> None:
    """A foreign connection is a ValueError, a wrong loop or a fork a RuntimeError."""
    assert issubclass(ReleaseError, ValueError)
    assert issubclass(errors.PoolWrongLoop, RuntimeError)
    assert issubclass(errors.PoolForked, RuntimeError)


def test_a_timeout_has_its_numbers_as_attributes() -> None:
    """Programs need not parse the message."""
    error = PoolTimeout(
        "late", timeout=1.5, max_size=4, size=3, leased=2, waiting=1, longest_lease=9.0
    )
    facts = (error.timeout, error.max_size, error.size, error.leased, error.waiting)
    assert facts == (1.5, 4, 3, 2, 1)
    assert error.longest_lease == 9.0


def test_too_many_requests_has_its_numbers_as_attributes() -> None:
    """The attributes are the length of the wait queue and its limit."""
    error = TooManyRequests("full", waiting=3, max_waiting=3)
    assert (error.waiting, error.max_waiting) == (3, 3)
