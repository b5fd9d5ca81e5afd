"""Streams on a resumable session: a sans-IO core, and the threads around it."""
