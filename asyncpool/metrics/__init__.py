"""A pool's numbers for those who collect them: a module for each, imported by who uses it."""
