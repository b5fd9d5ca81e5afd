"""Configuration: files and command lines become settings, or all their faults at once."""
