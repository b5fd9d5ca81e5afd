"""A port that speaks SOCKS5, SOCKS4a and HTTP proxy, and so leads wherever each of its users says."""
