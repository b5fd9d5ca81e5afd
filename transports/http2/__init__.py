"""The http2 and grpc transports (RFC 9113)."""
