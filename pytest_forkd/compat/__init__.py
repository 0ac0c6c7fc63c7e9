"""Every reach into what is private to pytest, pluggy, xdist, execnet and CPython; one file each."""
