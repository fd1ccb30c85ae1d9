"""The pool in other libraries: a module for each, imported by path by whoever wants it."""
