"""The adapters, one a pool."""
