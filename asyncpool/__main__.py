"""Run the command line by `python -m asyncpool`, the same as the script `asyncpool`."""

from asyncpool.cli import main

main()
