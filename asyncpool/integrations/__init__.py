"""Integrations with other libraries, one module each; import the module that you use."""
