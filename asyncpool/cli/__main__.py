"""Run the command line by `python -m asyncpool.cli`, as by `python -m asyncpool`."""

from asyncpool.cli import main

main()
