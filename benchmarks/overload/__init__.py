"""Compare pools under overload: `python -m benchmarks.overload`."""
