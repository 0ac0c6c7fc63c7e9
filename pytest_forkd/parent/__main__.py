"""Entry point of the parent: ``python -m pytest_forkd.parent`` or this file's path.

Everything is below the guard: multiprocessing's spawn method imports this file again in children
of tests.
"""

if __name__ == "__main__":
    import os
    import sys

    _package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path and os.path.abspath(sys.path[0]) == os.path.join(_package, "parent"):
        # Run by path, not with -m, so that no module of the suite shadows the standard library.
        # But then Python puts this folder first on sys.path, and our own modules would shadow it.
        del sys.path[0]
    if os.path.dirname(_package) not in sys.path:
        sys.path.append(os.path.dirname(_package))

    if "--ready-json" in sys.argv:
        # This process is all that runs in a guest; it says so itself when it is ready.
        from pytest_forkd.guest.machine import main
    else:
        from pytest_forkd.parent.server import main

    sys.exit(main(sys.argv[1:]))
