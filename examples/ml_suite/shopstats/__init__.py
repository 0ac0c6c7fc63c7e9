"""The project under test: figures about a small shop.

This file imports nothing on purpose: ``money`` and ``text`` need the standard library alone, and
only who asks for ``arrays``, ``frames`` or ``models`` pays for NumPy, pandas or scikit-learn.
"""
