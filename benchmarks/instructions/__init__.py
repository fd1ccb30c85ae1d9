"""Count the instructions of the hot paths, and compare them with the committed counts.

`python -m benchmarks.instructions` compares, `--renew` writes the counts that it has just made.
"""
