"""Runs in virtual machines of QEMU."""
