"""The working tree's difference: what makes a guest's project equal to the controller's.

A guest holds a project as it was when its snapshot was made. Before a run::

    controller                                       guest
    tree = scan.scan(root, Rules(exclude), cache)
    exclude, prune = tree.guest_arguments()   --->   have = tree.manifest(root, exclude, prune)
                                                     texts = tree.texts(root, partial_files())
    have = manifest_from_json(...)            <---
    what = difference.difference(tree, have)
    why = dependencies.stale(what, texts)
    pieces = pack.pack(what)                  --->   apply.apply(root, pieces)

``scan.scan`` reads the working tree: the files that git tracks or does not ignore, else a walk that
leaves out what is no source. ``difference.difference`` compares it with the guest's manifest: what
is missing or differs is written, what only the guest has is deleted, unless it is ignored here
(compiled extensions, say). ``dependencies.stale`` says whether the snapshot must be built anew.
``pack.pack`` gives the bytes to send, the same for all guests; ``apply.apply`` (or an
``apply.Applier``, fed piece by piece) does what they say, and writes nowhere else.

``tree`` and ``apply`` run in the guest: they import the standard library only. The manifest of a
tree that was just sent need not be asked for: it is that of the ``WorkingTree``.

A manifest maps relative paths to ``Entry`` tuples, and goes through JSON as it is; what comes from
a guest is checked by ``manifest_from_json``. Permission bits, links and odd names survive; owners,
hard links, devices and empty folders are not sent, as with git. Files get the time that they have
here. The bytecode of a Python file that is written or deleted is removed with it, since Python
knows a source again by time and size only.
"""
