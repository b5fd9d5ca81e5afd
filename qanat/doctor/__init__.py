"""What a path does to a tunnel, step by step, and what to change: `tunnel.py doctor`."""
