"""The control socket: what other processes of the same user ask of a running client or server."""
