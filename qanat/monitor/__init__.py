"""What others can see of a running server or client: metrics, and whatever else is served beside them over HTTP."""
