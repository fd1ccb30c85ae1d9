"""The command line: demo, ping, doctor and top. It needs the extra `cli` (typer and rich)."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; if typer or rich is missing, say how to install it and exit with 1."""
    try:
        from asyncpool.cli._app import app  # noqa: PLC0415 - to report a missing library
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(
            f"asyncpool: the command line needs {missing}: pip install 'psycopg-asyncpool[cli]'"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="asyncpool")
