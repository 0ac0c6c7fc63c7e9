"""Reads options, the ini values of the same name, and our data in pytest's cache."""
