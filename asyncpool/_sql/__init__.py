"""The kinds of statements by their text alone; imports nothing of the pool."""
