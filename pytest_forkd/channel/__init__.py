"""How the processes of a run talk to each other.

``frames`` carries control messages between the controller and the parent or collector,
``wire`` and ``gateway`` carry execnet's messages between the controller and a worker,
``events`` says what those messages mean. Only the standard library and execnet are imported
here: the parent and its clones use these modules, too.
"""
