"""Random programs of blocks and one-shots, with the outcomes that are legal for each step.

All blocks take their locks in one order, unless the program should deadlock in the server. No block
waits for another connection while one of its locks can block the holder of that connection. So
each request ends with one of a few outcomes, however the pool distributes the connections.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from ._sharing import WAYS

ANY: Any = object()
"""An expected value that matches any result."""

Kind = Literal["nested", "flat", "crowd"]
"""nested: blocks run one-shots, and one connection a block is never held by a request that waits
for a lock; flat: blocks run no one-shots; crowd: blocks without locks run one-shots, and there may
be too few connections, which the pool must report as a deadlock."""

ROWS = 4


@dataclass(frozen=True, slots=True)
class Op:
    """One statement."""

    query: str
    params: tuple[Any, ...] = ()
    call: Literal["execute", "fetchval", "executemany", "batch"] = "execute"
    expected: Any = ANY
    effects: tuple[tuple[str, int], ...] = ()
    """The rows that the statement increments, or the keys that it inserts."""
    rank: tuple[int, ...] = (0,)
    """The place of its locks in the lock order."""
    errors: frozenset[str] = frozenset()
    """The names of the legal error classes."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A one-shot, and how and when its caller leaves, if it does."""

    op: Op
    way: str | None = None
    after: float = 0.0
    key: int | None = None
    """The new value of the task's own row; 0: it reads the row; None: another statement."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block with its statements, one-shots and pauses in seconds."""

    kind: Literal["connection", "transaction", "session"]
    work: tuple[Op | Shot | float, ...]
    commits: bool = True
    way: str | None = None
    after: float = 0.0


Step = Shot | Block | float


@dataclass(slots=True)
class Program:
    """The steps of each task, and the options of the pool that they share."""

    seed: int
    kind: Kind
    ordered: bool
    """Whether blocks keep the lock order; if not, the server reports deadlocks."""
    options: dict[str, Any]
    tasks: list[list[Step]] = field(default_factory=list)


TABLES = ("a", "b")


def schema(name: str) -> list[str]:
    """Return the statements that create a program's tables, with the value 0 in each row."""
    statements = [f"CREATE SCHEMA {name}"]
    for table in (*TABLES, "free"):
        statements += [
            f"CREATE TABLE {name}.{table} (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)",
            f"INSERT INTO {name}.{table} SELECT id FROM generate_series(1, {ROWS}) id",
        ]
    statements += [
        f"CREATE TABLE {name}.own (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)",
        f"INSERT INTO {name}.own SELECT id FROM generate_series(0, 50) id",
        f"CREATE TABLE {name}.uniq (id int PRIMARY KEY, owner int)",
        f"CREATE TABLE {name}.scratch (id int)",
    ]
    return statements


def program(seed: int, name: str) -> Program:
    """Return the program of a seed, for the tables of the schema `name`."""
    random = Random(seed)
    kind: Any = random.choices(["nested", "flat", "crowd"], [5, 4, 1])[0]
    if kind == "nested":
        size = random.randint(4, 10)
        blockers = random.randint(1, size // 3)
        roles = ["blocker"] * blockers + ["writer"] * (size - 2 * blockers) + ["reader"] * 4
    else:
        size = random.randint(1, 10 if kind == "flat" else 3)
        roles = ["any"] * random.randint(2, 10 if kind == "flat" else 5)
    options = {
        "min_size": random.randint(0, size),
        "max_size": size,
        "reset": random.choice([None, None, "session"]),
    }
    made = Program(seed, kind, kind == "crowd" or random.random() < 0.8, options)
    for task, role in enumerate(roles):
        writer = Writer(random, made, name, task)
        steps = random.randint(3, 6) if kind == "crowd" else random.randint(8, 20)
        made.tasks.append([writer.step(role) for _ in range(steps)])
    return made


class Writer:
    """Generates the steps of one task."""

    def __init__(self, random: Random, made: Program, name: str, task: int) -> None:
        self.random, self.made, self.name, self.task = random, made, name, task
        self.numbers = 0

    def step(self, role: str) -> Step:
        """Return a step for a role: "blocker", "writer", "reader" or "any"."""
        roll = self.random.random()
        if roll < 0.08:
            return self.random.random() * 0.02
        if role == "reader":
            return self.maybe_left(Shot(self.quick() if roll < 0.9 else self.slow()))
        if role == "writer" or (role == "any" and roll < 0.55):
            return self.shot()
        return self.block()

    def shot(self) -> Shot:
        """Return a one-shot outside blocks."""
        if self.random.random() < 0.25:
            return self.own()
        ops = [self.quick, self.update, self.update, self.read, self.slow]
        ops += [self.unique, self.advisory]
        if self.made.kind != "crowd":
            ops += [self.lock_row, self.change, self.batch, self.many]
        return self.maybe_left(Shot(self.random.choice(ops)()))

    def own(self) -> Shot:
        """Return a one-shot on the task's own row."""
        if self.random.random() < 0.5:
            self.numbers += 1
            query = f"UPDATE {self.name}.own SET n = %s WHERE id = %s"
            op = Op(query, (self.numbers, self.task), expected="UPDATE 1")
            return self.maybe_left(Shot(op, key=self.numbers))
        query = f"SELECT n FROM {self.name}.own WHERE id = %s"
        return Shot(Op(query, (self.task,), "fetchval"), key=0)

    def maybe_left(self, shot: Shot) -> Shot:
        """Return the one-shot, or a copy whose caller leaves."""
        if self.random.random() < 0.85:
            return shot
        return Shot(shot.op, self.random.choice(WAYS), self.random.random() * 0.1, shot.key)

    def block(self) -> Block:
        """Return a block, with its locks in order unless the program may deadlock."""
        random = self.random
        ops: list[Op] = []
        if self.made.kind != "crowd":
            kinds = [self.update, self.update, self.read, self.lock_row, self.unique, self.advisory]
            ops = [random.choice(kinds)() for _ in range(random.randint(1, 3))]
            if random.random() < 0.3:
                ops.append(self.lock_table())
            if self.made.ordered:
                ops.sort(key=lambda op: op.rank)
        else:
            ops = [random.choice([self.quick, self.slow])() for _ in range(random.randint(1, 2))]
        work: list[Op | Shot | float] = []
        for op in ops:
            work.append(op)
            if random.random() < 0.4:
                work.append(random.random() * 0.02)
            if self.made.kind != "flat" and random.random() < 0.7:
                work += [self.inside() for _ in range(random.randint(1, 3))]
        kind: Any = "connection" if self.made.kind != "flat" else random.choice(KINDS)
        block = Block(kind, tuple(work), commits=random.random() < 0.85)
        if random.random() < 0.85:
            return block
        way = random.choice([way for way in WAYS if way != "timeout"])
        return Block(kind, block.work, block.commits, way, random.random() * 0.1)

    def inside(self) -> Shot:
        """Return a one-shot for inside a block, on a table that no block locks."""
        if self.made.kind == "crowd" or self.random.random() < 0.6:
            return Shot(self.quick())
        row = self.random.randint(1, ROWS)
        query = f"UPDATE {self.name}.free SET n = n + 1 WHERE id = %s"
        return self.maybe_left(
            Shot(Op(query, (row,), expected="UPDATE 1", effects=(("free", row),)))
        )

    def quick(self) -> Op:
        """Return a quick plain read."""
        number = self.random.randint(1, 100)
        return Op("SELECT %s::int", (number,), "fetchval", expected=number)

    def slow(self) -> Op:
        """Return a read that sleeps or works for some time."""
        if self.random.random() < 0.5:
            return Op("SELECT pg_sleep(%s)", (self.random.random() * 0.1,), "fetchval")
        rows = self.random.choice([1, 1, 20_000, 200_000, 1_500_000])
        query = "SELECT count(*) FROM generate_series(1, %s)"
        return Op(query, (rows,), "fetchval", expected=rows)

    def table(self) -> tuple[int, str]:
        rank = self.random.randrange(len(TABLES))
        return rank, TABLES[rank]

    def row(self) -> int:
        """Return a row; programs with few blocks use fewer rows, so that they conflict."""
        return self.random.randint(1, 2 if self.made.kind == "nested" else ROWS)

    def update(self) -> Op:
        """Return an update of a row that many tasks change."""
        (rank, table), row = self.table(), self.row()
        query = f"UPDATE {self.name}.{table} SET n = n + 1 WHERE id = %s"
        effects = ((table, row),)
        return Op(query, (row,), expected="UPDATE 1", effects=effects, rank=(rank, 2, row))

    def read(self) -> Op:
        """Return a read of a row that other tasks change or whose table they lock."""
        (rank, table), row = self.table(), self.row()
        query = f"SELECT n >= 0 FROM {self.name}.{table} WHERE id = %s"
        return Op(query, (row,), "fetchval", expected=True, rank=(rank, 1))

    def lock_row(self) -> Op:
        """Return a SELECT FOR UPDATE of such a row."""
        (rank, table), row = self.table(), self.row()
        query = f"SELECT n >= 0 FROM {self.name}.{table} WHERE id = %s FOR UPDATE"
        return Op(query, (row,), "fetchval", expected=True, rank=(rank, 2, row))

    def lock_table(self) -> Op:
        """Return a LOCK TABLE or ALTER TABLE for a block."""
        rank, table = self.table()
        if self.random.random() < 0.3:
            return Op(self.alter(table), rank=(rank, 0))
        mode = self.random.choice(["ACCESS EXCLUSIVE", "EXCLUSIVE"])
        return Op(f"LOCK TABLE {self.name}.{table} IN {mode} MODE", rank=(rank, 0))

    def alter(self, table: str) -> str:
        self.numbers += 1
        return f"ALTER TABLE {self.name}.{table} ADD COLUMN c_{self.task}_{self.numbers} int"

    def change(self) -> Op:
        """Return a statement for a one-shot that changes or rewrites a table."""
        self.numbers += 1
        made = f"{self.name}.t_{self.task}_{self.numbers}"
        return Op(
            self.random.choice(
                [
                    self.alter(self.table()[1]),
                    f"CREATE TABLE {made} AS SELECT 1 AS x",
                    f"TRUNCATE {self.name}.scratch",
                    f"INSERT INTO {self.name}.scratch SELECT generate_series(1, 10)",
                ]
            )
        )

    def unique(self) -> Op:
        """Return an insert of a key that other tasks insert too."""
        key = self.random.randint(1, 12)
        query = f"INSERT INTO {self.name}.uniq VALUES (%s, %s)"
        return Op(
            query,
            (key, self.task),
            expected="INSERT 0 1",
            effects=(("uniq", key),),
            rank=(8, key),
            errors=frozenset({"UniqueViolation"}),
        )

    def advisory(self) -> Op:
        """Return a statement that takes an advisory lock until the transaction's end."""
        key = self.random.randint(1, 3)
        return Op("SELECT pg_advisory_xact_lock(%s)", (key,), rank=(9, key))

    def _several(self) -> tuple[int, str, list[int]]:
        rank, table = self.table()
        rows = sorted(self.random.sample(range(1, ROWS + 1), self.random.randint(2, 3)))
        return rank, table, rows

    def many(self) -> Op:
        """Return an `executemany` that updates several rows."""
        _, table, rows = self._several()
        query = f"UPDATE {self.name}.{table} SET n = n + 1 WHERE id = %s"
        effects = tuple((table, row) for row in rows)
        values = tuple((row,) for row in rows)
        return Op(query, values, "executemany", expected=len(rows), effects=effects)

    def batch(self) -> Op:
        """Return a batch that updates several rows."""
        _, table, rows = self._several()
        query = f"UPDATE {self.name}.{table} SET n = n + 1 WHERE id = %s"
        effects = tuple((table, row) for row in rows)
        statements = tuple((query, [row]) for row in rows)
        expected = ["UPDATE 1"] * len(rows)
        return Op(query, statements, "batch", expected=expected, effects=effects)


KINDS = ["connection", "transaction", "session"]
