"""Helpers for any process of a run: garbage collector, log files, limits, other processes."""
