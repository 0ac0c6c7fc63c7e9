"""Code that runs in a guest of the ``forkd`` or ``qemu`` backend, in addition to the parent's own.

A guest has one process of this package, the parent, which preloads modules and then waits. It
becomes the collector of the run that the guest is cloned for, and forks one worker. A snapshot may
be taken whenever this single process waits for an exchange: before a run, or after collecting.

The guest's agent runs ``relay``, which passes an exchange to the parent's unix socket. ``endpoint``
is the guest's end of the stream that is made of exchanges, ``port`` serves the socket, ``machine``
carries out the controller's messages, and ``restore`` makes a clone differ from others.

``CONTROL`` messages (:mod:`pytest_forkd.channel.mux`), each with one key:

==========================  ==============================================================
controller: ``restore``     ``time``, ``seed``, ``hostname``: they make a clone unlike others
guest: ``hello``            its version, Python, state (``rest``, ``collected``), and which
                            parts of ``restore`` have failed
controller: ``manifest``    which part of the project's tree it asks for
guest: ``manifest``         ``entries`` and ``texts``, see :mod:`pytest_forkd.sync`
controller: ``sync``        ``root``: a difference follows, as ``FILES``, until ``sync_end``
guest: ``synced``           ``error``, or ``null``
controller: ``collect``     the request of a run, see ``parent.collector``
guest: ``warm``, ...        the collector's answers, as in the process backend
controller: ``fork``        ``worker``, ``workerinput``, ``basetemp``
guest: ``forked``           ``worker``, ``pid``; or ``fork_failed``
controller: ``signal``      ``worker``, ``signum``
guest: ``exit``             ``worker``, ``status`` and what the worker left
controller: ``end``         no more workers; the guest's process ends when the last one has
==========================  ==============================================================
"""
