"""A real server behind a real proxy that many clients share: honest ones of every habit, and strangers beside them."""
