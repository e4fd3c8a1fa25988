"""Protocol parsers and writers without I/O: bytes in, events out."""
