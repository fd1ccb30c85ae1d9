"""Compare pools of many processes that share one server: `python -m benchmarks.fleet`."""
