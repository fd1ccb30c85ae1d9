"""Measure pools under faults, each on a server of its own: `python -m benchmarks.faults`."""
