"""All uses of private names of pytest, pluggy, xdist, execnet and CPython, in a module for each."""
