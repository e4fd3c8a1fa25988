"""Connections to origins: made, leased, kept idle, watched."""
