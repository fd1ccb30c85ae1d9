"""The command line: demo, ping and doctor. It needs the extra `demo` (typer and rich)."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its libraries, say how to get them and exit with status 1."""
    try:
        from asyncpool.cli._app import app  # noqa: PLC0415 - here, to be able to say what is missing
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(f"asyncpool: the command line needs {missing}: pip install 'asyncpool[demo]'")
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="asyncpool")
