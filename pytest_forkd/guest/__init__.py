"""What runs in a guest of the ``forkd`` or ``qemu`` backend, beside the parent's own code.

A guest holds one process of this package, the parent, which preloads and then rests. It becomes the
collector of the run that the guest is cloned for, and forks one worker. Since it is a single
process, and rests where it waits for the next exchange, a snapshot may be taken of it at any such
time: before a run, or when it has collected.

``relay`` is run by the guest's agent, which has no other way to pass bytes on: it hands an exchange
to the parent's unix socket. ``endpoint`` is this end of the stream that is made of exchanges,
``port`` serves the socket, ``machine`` does what the controller says, ``restore`` is what a guest
does when it has been cloned.

``CONTROL`` messages (:mod:`pytest_forkd.channel.mux`), each with one key:

==========================  ==============================================================
controller: ``restore``     ``time``, ``seed``, ``hostname``: what makes a clone one of its own
guest: ``hello``            what it is: version, Python, how far it is (``rest``,
                            ``collected``), what of ``restore`` it could not do
controller: ``manifest``    what of the project's tree is asked for
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
