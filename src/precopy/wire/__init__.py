"""Bytes on a stream and what they mean, without I/O. `native` is precopy's own protocol."""
