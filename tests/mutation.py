"""Mutation testing of the core: every small change to it must make some test fail.

    python -m tests.mutation                          the whole core: under an hour
    python -m tests.mutation --all ledger pool:120  one module, and a line of another

pytest collects the tests once. Each mutant is a fork in which one function's code is exchanged, and
which runs the tests that reach its line until one fails: first those that are quick and that have
just failed for other mutants. Without `--all` it leaves out the long ones. It needs Python 3.12 and
no server.

The changes that no test notices, and why, are in mutation.md beside it.
"""

from __future__ import annotations

import ast
import gc
import importlib.machinery
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from types import CodeType, FunctionType
from typing import Any, TextIO

import pytest

from tests.mutants import ROOT, Mutant, mutants, path_of

assert sys.version_info >= (3, 12), "sys.monitoring tells which test reaches which line"

CORE = ["ledger", "budget", "wait_queue", "timer", "leasing", "waiting", "pool", "store"]
CORE += ["readiness", "failures", "lease_monitor", "lease", "check", "background", "runtime"]
CORE += ["maintenance", "entry", "outage", "outage_controller"]
CORE += ["admission", "service_rate", "patience", "lines", "waiter", "within"]
OWN = {"leasing": ["acquire", "release"], "pool": ["close", "loops"], "readiness": ["store"]}
OWN |= {"waiting": ["waiting", "acquire", "wait_queue"], "failures": ["outages"]}
OWN |= {"outage_controller": ["outages", "store"], "runtime": ["loops"]}
OWN |= {"service_rate": ["admission"], "patience": ["admission"], "waiter": ["wait_queue"]}
OWN |= {"lines": ["overload", "overload_kept"], "within": ["overload"]}
"""Test files whose names are not the module's."""
SIM = "tests/sim/test_sim.py::test_no_law_is_broken_in_any_schedule"
TESTS = ["tests/unit", f"{SIM}[0]", "tests/sim/test_machine.py"]
OPTIONS = ["-qq", "-p", "no:cacheprovider", "-o", "timeout=0", "-m", "", "-k"]
QUICK = "not planted and not gates and not testing and not layers and not script"
ALL = "not planted"
LONG = 0.2
"""Seconds of a CPU from which a test is left out without `--all`."""
JOBS = int(os.environ.get("JOBS", os.cpu_count() or 1))
SPIN, HANG = 2, 20
"""Seconds of a CPU, and by the clock, that a test has above three times what it took."""
START = 60
"""Seconds of a CPU to start pytest anew."""
UNPROVEN, MEMORY = 0.02, 0.9
"""A test that never failed is worth this part of a failure, and a failure this part of the next."""


class Hunt:
    """A pytest plugin that runs the collected tests on each mutant."""

    def __init__(self, wanted: list[str], some: str, out: TextIO) -> None:
        self.wanted = wanted
        self.some = some
        self.out = out
        self.reached: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
        self.took: dict[pytest.Item, float] = {}
        self.left_out: list[str] = []
        self.functions: dict[str, list[FunctionType]] = defaultdict(list)
        self.tally: dict[str, Counter[str]] = defaultdict(Counter)
        self.under_way: dict[int, tuple[Mutant, int]] = {}
        """By process: what it tries, and the pipe in which it says which test has failed."""
        self.kills: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the tests that fail."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests on each mutant, in the place of pytest's own loop."""
        self.watch(session)
        if session.testsfailed:
            print("these tests fail as they are:", *self.failed, file=self.out, flush=True)
            return True
        gc.unfreeze()  # tests/conftest.py has hidden the functions from the collector
        for each in gc.get_objects():
            if isinstance(each, FunctionType):
                self.functions[each.__code__.co_filename].append(each)
        gc.freeze()
        for wanted in self.wanted:
            module, _, line = wanted.partition(":")
            tree, found = mutants(module)
            for mutant in found:
                if not line or mutant.line == int(line):
                    self.start(session, tree, mutant)
            while self.under_way:
                self.wait()
            tally = self.tally.pop(module, Counter())
            total, left = tally.total(), tally["survived"]
            share = 100 * (1 - left / max(total, 1))
            text = f"{module}: {total} mutants, {share:.1f} %: {dict(tally)}"
            print(text, file=self.out, flush=True)
        return True

    def watch(self, session: pytest.Session) -> None:
        """Run each test once, and note how long it takes and which lines it reaches."""
        tool, lines = sys.monitoring.COVERAGE_ID, set[tuple[str, int]]()

        def seen(code: CodeType, line: int) -> Any:
            lines.add((code.co_filename, line))
            return sys.monitoring.DISABLE

        sys.monitoring.use_tool_id(tool, "mutation")
        sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, seen)
        sys.monitoring.set_events(tool, sys.monitoring.events.LINE)
        for item in session.items:
            lines.clear()
            sys.monitoring.restart_events()
            began = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.took[item] = time.process_time() - began
            if self.some == QUICK and self.took[item] > LONG:
                self.left_out.append(f"--deselect={item.nodeid}")
                continue
            for place in lines.copy():
                self.reached[place].append(item)
        sys.monitoring.free_tool_id(tool)

    def start(self, session: pytest.Session, tree: ast.Module, mutant: Mutant) -> None:
        """Run the tests on it, in a process of its own."""
        tests = {
            test for line in mutant.lines for test in self.reached[path_of(mutant.module), line]
        }
        afresh = not mutant.inside or not tests  # what no test reaches may run at import
        while len(self.under_way) >= JOBS:
            self.wait()
        source, sink = os.pipe()
        pid = os.fork()
        if pid:
            os.close(sink)
            self.under_way[pid] = mutant, source
            return
        os.dup2(1, 2)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        limit(START + sum(self.took.values()))
        if afresh or not exchange(self.functions[path_of(mutant.module)], mutant.code(tree)):
            which = (mutant.module, str(mutant.number), self.some, *self.left_out)
            os.execv(sys.executable, [sys.executable, "-m", "tests.mutation", "--afresh", *which])  # noqa: S606
        for item in sorted(tests, key=self.cost):
            limit(self.took[item])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                os.write(sink, item.nodeid.encode())
                os._exit(1)
        os._exit(0)

    def cost(self, item: pytest.Item) -> float:
        """Seconds of a CPU for each mutant that the test is likely to notice."""
        return self.took[item] / (self.kills.get(item.nodeid, 0) + UNPROVEN)

    def wait(self) -> None:
        """Wait for the end of one mutant, and count its outcome."""
        pid, status = os.wait()
        if pid in self.under_way:
            mutant, source = self.under_way.pop(pid)
            with os.fdopen(source) as pipe:
                failed = pipe.read()
            self.kills = {test: kills * MEMORY for test, kills in self.kills.items()}
            if failed:
                self.kills[failed] = self.kills.get(failed, 0) + 1
            verdict = "timed out" if os.WIFSIGNALED(status) else "killed" if status else "survived"
            self.count(mutant, verdict)

    def count(self, mutant: Mutant, verdict: str) -> None:
        """Count the outcome of one mutant."""
        self.tally[mutant.module][verdict] += 1
        if verdict != "killed":
            print(f"{verdict}: {mutant}", file=self.out, flush=True)


def limit(took: float) -> None:
    """End this process if what it does takes much longer, by its CPU time or by the clock."""
    signal.setitimer(signal.ITIMER_PROF, SPIN + 3 * took)
    signal.alarm(int(HANG + 3 * took))


def exchange(functions: list[FunctionType], code: CodeType) -> bool:
    """Let the functions of a module that is in use run their mutated code."""
    assert functions, "the functions of the module were not found"
    new: dict[str, CodeType] = {}
    rest = [code]
    while rest:
        each = rest.pop()
        new[f"{each.co_qualname}:{each.co_firstlineno}"] = each
        rest += (const for const in each.co_consts if isinstance(const, CodeType))
    for function in functions:
        old = function.__code__
        mine = new.get(f"{old.co_qualname}:{old.co_firstlineno}")
        if mine is None or mine.co_freevars != old.co_freevars:
            return False
        function.__code__ = mine
    return True


def afresh(module: str, number: str, some: str, *left_out: str) -> int:
    """Run the tests on one mutant that is no function's code; the exit code is pytest's."""
    tree, found = mutants(module)
    code = found[int(number)].code(tree)
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        return code if name == f"asyncpool._core.{module}" else usual(self, name)

    setattr(importlib.machinery.SourceFileLoader, "get_code", get_code)  # noqa: B010
    own = [f"tests/unit/test_{name}.py" for name in OWN.get(module, [module])]
    return pytest.main([*own, *TESTS, "-x", "--assert=plain", *OPTIONS, some, *left_out])


def main(arguments: list[str]) -> None:
    """See the head of this file."""
    os.chdir(ROOT)
    if arguments[:1] == ["--afresh"]:
        sys.exit(afresh(*arguments[1:]))
    some = QUICK
    if arguments[:1] == ["--all"]:
        some = ALL
        del arguments[0]
    hunt = Hunt(arguments or CORE, some, os.fdopen(os.dup(1), "w"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what pytest and the tests say
    sys.exit(pytest.main([*TESTS, "-s", *OPTIONS, some], plugins=[hunt]))


if __name__ == "__main__":
    main(sys.argv[1:])
