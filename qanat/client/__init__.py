"""The running client: sessions with its servers, reconnecting, known hosts, and the watch on the network."""
