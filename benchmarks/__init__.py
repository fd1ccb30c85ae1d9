"""Compare asyncpool with other pools on the same server: `python -m benchmarks`."""
