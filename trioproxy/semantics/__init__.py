"""What HTTP means, as pure functions over values: no I/O, no protocol version."""
