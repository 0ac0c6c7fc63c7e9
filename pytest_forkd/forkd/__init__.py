"""A forkd daemon, as this package sees it: its client, what a run makes there, snapshots."""
