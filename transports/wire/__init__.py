"""Wires: a byte stream over TCP, a Unix socket or TLS."""
