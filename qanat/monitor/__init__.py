"""What a running client or server looks like: a snapshot, and whoever shows, measures or watches it."""
