"""Run the README's first example on the package that is installed, not on this tree.

    cd / && python -P /path/to/tests/installed.py

`-P` keeps this folder out of `sys.path`. The extra `testing` is needed, for a server.
"""

from __future__ import annotations

import asyncio
import os
import re
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def first_example(readme: str) -> str:
    """Return the first block of Python, as the body of an async function named `example`."""
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None, "README.md has no block of Python"
    return "async def example():\n" + textwrap.indent(found[1], "    ")


async def main() -> None:
    """Start a server, and run the example with libpq's environment pointing there."""
    from psycopg.conninfo import conninfo_to_dict

    import asyncpool
    from asyncpool.testing import postgres

    assert Path(asyncpool.__file__).parents[1] != ROOT, "this is not the installed package"
    code = first_example((ROOT / "README.md").read_text()).replace('"dbname=app', '"')
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own page
    async with postgres() as server:
        for name, value in conninfo_to_dict(server.dsn).items():
            os.environ[f"PG{'DATABASE' if name == 'dbname' else name.upper()}"] = str(value)
        await names["example"]()  # type: ignore[operator]
    (plugin,) = entry_points(group="pytest11", name="asyncpool")
    assert plugin.load().asyncpool_dsn, "pytest finds no fixtures"
    print(f"asyncpool {asyncpool.__version__} in {Path(asyncpool.__file__).parent}")


if __name__ == "__main__":
    asyncio.run(main())
