"""The server's listening sockets, and each connection until it is a pipe."""
