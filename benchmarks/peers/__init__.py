"""The adapters, a module for each library."""
