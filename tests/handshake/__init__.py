"""Tests of the handshake room: one promise a test, one attacker a class."""
