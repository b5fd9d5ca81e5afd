"""What a client may reach and where it may listen."""
