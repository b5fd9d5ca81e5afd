"""The running client and server: configuration, sessions, reconnecting, access, front door."""
