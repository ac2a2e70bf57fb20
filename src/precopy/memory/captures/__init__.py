"""Layouts of real machines: the text of QEMU's monitor, and what is made of it here."""
