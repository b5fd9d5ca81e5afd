"""A proxy's own configuration: which of its lines keep a transport out, and a patch that lets it in."""
