"""Parents that are kept for the next run: where they are found, asked and ended."""
