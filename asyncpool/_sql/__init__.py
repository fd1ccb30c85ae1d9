"""The kinds of statements, told by their text alone. It imports nothing of the pool."""
