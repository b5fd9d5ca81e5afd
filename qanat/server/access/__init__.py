"""Where a client may listen."""
