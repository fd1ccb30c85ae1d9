"""Snapshots, explanations and leak reports."""
