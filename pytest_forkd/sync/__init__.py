"""Sends the difference that makes a guest's project equal to the controller's working tree.

A guest holds a project as it was when its snapshot was made. Before a run::

    controller                                       guest
    tree = scan.scan(root, Rules(exclude), cache)
    exclude, prune = tree.guest_arguments()   --->   have = tree.manifest(root, exclude, prune)
                                                     texts = tree.texts(root, partial_files())
    have = manifest_from_json(...)            <---
    what = difference.difference(tree, have)
    why = dependencies.stale(what, texts)
    pieces = pack.pack(what)                  --->   apply.apply(root, pieces)

``scan.scan`` reads the working tree: the files that git tracks or does not ignore; without git, a
walk that leaves out folders that are not source. ``difference.difference`` compares it with the
guest's manifest: files that are missing or differ are written, files that only the guest has are
deleted, unless they are ignored here (compiled extensions, for example). ``dependencies.stale``
tells whether the snapshot must be rebuilt. ``pack.pack`` makes the bytes to send, the same for all
guests. ``apply.apply`` (or an ``apply.Applier``, fed piece by piece) applies them, and writes
nowhere else.

``tree`` and ``apply`` run in the guest: they import only the standard library. After sending, the
guest's manifest is known: it is that of the ``WorkingTree``.

A manifest maps relative paths to ``TreeEntry`` tuples, and can be sent as JSON; one from a guest is
checked by ``manifest_from_json``. Permission bits, links and odd names are preserved; owners, hard
links, devices and empty folders are not sent, as with git. Files keep their modification time.
When a Python file is written or deleted, its bytecode is removed, since Python compares only the
source's time and size.
"""
