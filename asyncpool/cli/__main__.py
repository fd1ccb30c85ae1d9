"""Run the command line by `python -m asyncpool.cli`, an alias of `asyncpool`."""

from asyncpool.cli import main

main()
