"""Qanat: TCP and UDP through ordinary HTTP infrastructure, sealed end to end."""

from qanat.base.version import __version__

__all__ = ["__version__"]
