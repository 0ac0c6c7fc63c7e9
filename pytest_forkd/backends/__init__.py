"""How clones come into being: one module a backend, behind :class:`pytest_forkd.backends.base`."""
