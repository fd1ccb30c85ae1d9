"""A pool's metrics for collectors, one module each; import the module that you use."""
