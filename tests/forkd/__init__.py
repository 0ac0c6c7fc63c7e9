"""Runs in machines of a forkd daemon, the stand-in or a real one."""
