"""What the two ends of a session share."""
