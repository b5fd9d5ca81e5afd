"""Authentication and keys: a sans-IO machine for either role, and the sealed channel."""
