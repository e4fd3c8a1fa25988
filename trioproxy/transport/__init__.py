"""Sockets in, sockets out: the only modules that touch them."""
