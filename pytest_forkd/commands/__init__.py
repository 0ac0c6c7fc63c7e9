"""The command ``pytest-forkd``."""
