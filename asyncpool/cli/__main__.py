"""`python -m asyncpool.cli`, the same as `asyncpool`."""

from asyncpool.cli import main

main()
