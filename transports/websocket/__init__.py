"""The websocket transport (RFC 6455)."""
