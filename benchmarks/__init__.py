"""Measurements against real processes, all of one comparison in one run."""
