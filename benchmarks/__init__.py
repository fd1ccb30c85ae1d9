"""asyncpool beside the pools its users come from, on the same server: `python -m benchmarks`."""
