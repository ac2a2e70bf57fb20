"""QEMU's own pre-copy migration, measured with the same kind of guest as ours: the peer of the benchmark."""
