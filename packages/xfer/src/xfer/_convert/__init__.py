"""Arrays of one library or device as those of another."""
