"""What pools make of faults, each alone on the same server: `python -m benchmarks.faults`."""
