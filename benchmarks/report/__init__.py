"""What was found: results as values and as JSON, what they say, and how they stand in docs/."""
