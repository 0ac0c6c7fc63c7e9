"""How clones are made: the interface of backends (``base``), and the ``process`` backend."""
