"""The way out: URLs, proxies, and the one dialer for every transport."""
