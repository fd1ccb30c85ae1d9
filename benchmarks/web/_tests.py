"""The tests with their paths, and the two tables that they use."""

from __future__ import annotations

ROWS = 10_000
TWENTY = 20

TESTS = {
    "row": "one row by its key, in autocommit",
    "transaction": "the same in a transaction",
    "twenty": f"{TWENTY} rows, one query each, on one connection",
    "fortunes": "fortunes: all rows of a small table as HTML",
    "updates": f"updates: {TWENTY} rows read and written",
}
"""The title of each test; its key is its path."""

SELECT = "SELECT id, number FROM benchmark_world WHERE id = %s"
FORTUNES = "SELECT id, message FROM benchmark_fortune"
UPDATE = "UPDATE benchmark_world SET number = %s WHERE id = %s"
ADDED = "Additional fortune added at request time."

MESSAGES = (
    "A bad random number generator: 1, 1, 1, 1, 1, 4.33e+67, 1, 1, 1",
    "A computer program does what you tell it to do, not what you want it to do.",
    "Any program that runs right is obsolete.",
    "Emacs is a nice operating system, but I prefer UNIX.",
    "Feature: A bug with seniority.",
    "fortune: No such file or directory",
    "<script>alert('This should not run.');</script>",
    "フレームワークのベンチマーク",
)

DROP = "DROP TABLE IF EXISTS benchmark_world, benchmark_fortune"
CREATE = f"""
    {DROP};
    CREATE UNLOGGED TABLE benchmark_world (id integer PRIMARY KEY, number integer NOT NULL)
        WITH (fillfactor = 50);
    INSERT INTO benchmark_world SELECT i, i FROM generate_series(1, {ROWS}) AS i;
    CREATE UNLOGGED TABLE benchmark_fortune (id integer PRIMARY KEY, message text NOT NULL);
"""
INSERT = "INSERT INTO benchmark_fortune VALUES (%s, %s)"
