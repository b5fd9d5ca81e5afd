"""The one place that states the version of this program (setup.cfg reads it)."""

__version__ = "0.1.0"
