"""Tests of endpoints/: real sockets, real resets."""
