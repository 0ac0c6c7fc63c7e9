"""Workers that are forks."""
