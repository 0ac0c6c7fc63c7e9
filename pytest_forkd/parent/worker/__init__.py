"""The collector, and the workers that it forks."""
