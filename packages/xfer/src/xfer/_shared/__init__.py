"""Arrays in shared memory of the host."""
