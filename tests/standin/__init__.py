"""A stand-in for a forkd daemon, for tests on machines without KVM.

It serves the documented v1 routes over HTTP or HTTPS with their documented limits, and a guest
behaves as the stock agent makes it behave: ``exec`` answers after the program has ended and
decodes its output lossily, ``eval`` runs in the agent's interpreter, nobody but the daemon can
reach a guest, and a sandbox lives until it is deleted. A snapshot really is a prewarmed process
tree that stands still, and a sandbox really is a copy of it, memory included: see
``tests/standin/guest/cloning.py``.

What it is not:

* no virtual machine: a guest is a process tree with a mount namespace of its own. Only ``/run``
  and the directories that a description names are the guest's; the rest of the file system, the
  processes, the network, the host name and the clock are the host's, and nothing is isolated. It
  needs Linux and the right to make a mount namespace (root, or unprivileged user namespaces).
* no kernel is cloned: process ids differ between clones (``os.waitpid`` and ``os.kill`` are told),
  and sockets other than UNIX ones, threads, and descriptors such as those of inotify are not
  cloned. Where that matters, the request fails with a 500 that says so.
* ``memory_limit_mib``, ``prewarm`` and ``hugepages`` are accepted and do nothing; modes ``live``,
  ``diff`` and ``full`` of a branch differ in what they require and take equally long; there are no
  workspaces, volumes, images or registries; ``/metrics`` has two numbers.
* in ``POST /v1/snapshots``, ``kernel`` is any file that exists, and ``rootfs`` a JSON file:
  ``{"recipe": {"FORKD_WARMUP_CMD": ...}, "own": {"/path/in/guest": "/copied/from" or null}}``.
* its figures say nothing about forkd's.

Beside v1 it has ``POST /standin/faults`` (see ``tests/standin/faults.py``) and ``POST
/standin/damage``, which makes a snapshot unbootable. Start it with ``python -m tests.standin``, or
in a test as ``tests/standin/fixture.py`` says.
"""
