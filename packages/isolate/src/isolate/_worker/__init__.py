"""What runs on both ends of a worker's socket: standard library only, loaded by path."""
