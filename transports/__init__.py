"""Pipes over HTTP: one module a transport, all behind the interface in `qanat.transports.pipe`."""
