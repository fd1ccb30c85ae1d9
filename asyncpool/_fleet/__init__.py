"""The parts of `Fleet`: its rule, its marks, and what it asks the server."""
