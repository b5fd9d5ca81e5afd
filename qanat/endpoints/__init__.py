"""What a stream is joined to: listening sockets, connected sockets, and the pumps between."""
