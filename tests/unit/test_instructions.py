"""The budget of instructions: what is compared, and what fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.instructions._callgrind import PARTS, Uncountable, count, parts, per_run
from benchmarks.instructions._compare import compare
from benchmarks.instructions._paths import PATHS
from benchmarks.instructions._program import BATCHES
from benchmarks.instructions._record import FILE, Record, facts, read, write

COMMITTED = Record(
    {
        "python": "3.12.1",
        "build": "GCC 12.2.0",
        "machine": "x86_64",
        "cpu": "Xeon",
        "packages": "anyio==4.16.0 psycopg==3.3.9",
    },
    {"cycle": 20_000, "select": 100_000},
)


def here(**different: str) -> Record:
    return replace(COMMITTED, made_with=COMMITTED.made_with | different)


def counted(now: Record = COMMITTED, **counts: int) -> Record:
    return replace(now, instructions=COMMITTED.instructions | counts)


def test_equal_counts_pass() -> None:
    """The lines show each path with both counts."""
    verdict = compare(COMMITTED, COMMITTED)
    assert not verdict.failed
    assert [line.split()[0] for line in verdict.lines] == ["cycle", "select"]


@pytest.mark.parametrize(("cycle", "fails"), [(21_000, False), (21_001, True), (40_000, True)])
def test_growth_by_more_than_five_percent_fails(cycle: int, fails: bool) -> None:
    """One path is enough, and it is named with the way to renew."""
    verdict = compare(COMMITTED, counted(cycle=cycle))
    assert verdict.failed is fails
    assert any(line.startswith("grown") for line in verdict.lines) is fails
    if fails:
        assert "cycle." in verdict.lines[-1]
        assert "--renew" in verdict.lines[-1]


def test_a_path_that_grows_is_not_hidden_by_one_that_shrinks() -> None:
    """The paths are judged one by one."""
    assert compare(COMMITTED, counted(cycle=25_000, select=10_000)).failed


def test_counts_that_fell_are_to_be_renewed_but_pass() -> None:
    """Else the next growth would have that much room."""
    verdict = compare(COMMITTED, counted(select=90_000))
    assert not verdict.failed
    assert verdict.lines[-1].startswith("less by more than 5%: select.")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("python", "3.13.1"),
        ("build", "GCC 12.2.0 --with-lto"),
        ("machine", "aarch64"),
        ("packages", "anyio==4.16.0 psycopg==3.3.10"),
    ],
)
def test_counts_of_something_else_are_not_compared_and_said_so(fact: str, value: str) -> None:
    """Both values are in the line, and nothing looks like a pass."""
    verdict = compare(COMMITTED, counted(here(**{fact: value}), cycle=40_000))
    assert not verdict.failed
    assert verdict.lines == [
        f"not compared: made with {fact} {COMMITTED.made_with[fact]}, here {value}"
    ]


def test_a_fact_that_only_one_side_has_is_a_difference() -> None:
    """A record from before a fact was collected is not compared."""
    verdict = compare(COMMITTED, here(libc="musl"))
    assert verdict.lines == ["not compared: made with libc unknown, here musl"]


@pytest.mark.parametrize(("fact", "value"), [("python", "3.12.14"), ("cpu", "EPYC")])
def test_another_patch_version_or_cpu_is_compared(fact: str, value: str) -> None:
    """Neither may turn the check off."""
    assert not compare(COMMITTED, here(**{fact: value})).failed
    assert compare(COMMITTED, counted(here(**{fact: value}), cycle=25_000)).failed


def test_growth_on_another_patch_version_names_both() -> None:
    """The reader can tell a release of Python from a change of ours."""
    verdict = compare(COMMITTED, counted(here(python="3.12.14"), cycle=25_000))
    assert verdict.lines[-1] == "The committed counts are of Python 3.12.1, these of 3.12.14."


@pytest.mark.parametrize("missing", ["cycle", "select"])
def test_a_path_without_a_committed_count_fails(missing: str) -> None:
    """A new path, or one that was renamed, is not left out in silence; nor is one that is gone."""
    fewer = {name: number for name, number in COMMITTED.instructions.items() if name != missing}
    less = replace(COMMITTED, instructions=fewer)
    for verdict in (compare(less, COMMITTED), compare(COMMITTED, less)):
        assert verdict.failed
        assert missing in verdict.lines[-1]


def test_the_committed_counts_are_of_the_paths_there_are() -> None:
    """And of the facts that are collected."""
    committed = read(FILE)
    assert committed.instructions.keys() == PATHS.keys()
    assert committed.made_with.keys() == facts().keys()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The file is all that there is from one run to the next."""
    write(COMMITTED, tmp_path / "counts.json")
    assert read(tmp_path / "counts.json") == COMMITTED


def test_a_count_is_the_median_batch_divided_by_its_runs() -> None:
    """What is counted between the batches does not matter, nor does one batch that is off."""
    _, times = PATHS["cycle"]
    batches = [times * 100] * (BATCHES - 1) + [times * 900]
    with_pauses = [part for batch in batches for part in (12_345, batch)]
    assert per_run(with_pauses, ("cycle",)) == {"cycle": 100}


@pytest.mark.parametrize("number", [0, PARTS - 1, PARTS + 1])
def test_another_number_of_parts_than_of_marks_is_an_error(number: int) -> None:
    """Something else called the function that marks: the parts are not those of the batches."""
    with pytest.raises(Uncountable, match=f"{number} parts for {PARTS} calls"):
        per_run([1] * number, ("cycle",))


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Part 10 comes after part 9, and the file without a number is the rest of the program."""
    for number in range(1, 12):
        (tmp_path / f"part.{number}").write_text(f"version: 1\nsummary: {number * 7}\n\nfn=(1)\n")
    (tmp_path / "part").write_text("summary: 99\n")
    assert parts(tmp_path) == [number * 7 for number in range(1, 12)]


async def test_without_valgrind_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error, not a count of zero."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Uncountable, match="not installed"):
        await count("")
