"""Runs whose workers are forks, as users have them."""
