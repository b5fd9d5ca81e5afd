"""What the operating system expects of a process that stays: signals, locks, logs."""
