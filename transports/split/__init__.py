"""Two sequences of bytes carried by plain requests, for paths that hold back what is not finished."""
