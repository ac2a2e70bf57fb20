"""Bytes on a stream and what they mean, without I/O. `events` is what is said, `format` what every format can do,
`native` precopy's own format, `default` which format is spoken."""
