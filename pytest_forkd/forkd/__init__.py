"""The forkd backend: a client for forkd daemons, records of what runs make there, and snapshots."""
