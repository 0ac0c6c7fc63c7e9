"""What runs in the parent and in its clones.

Started by a backend, imported by nothing in the controller. It imports the standard library,
pytest, execnet, ``xdist.remote`` and :mod:`pytest_forkd.channel`, so that the parent holds what
every worker needs and no more.
"""
