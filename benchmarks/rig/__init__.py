"""What measures and is measured: processes, two machines with a line between them, the load and its target."""
