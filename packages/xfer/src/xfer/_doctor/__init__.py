"""Checks and measures what this machine can do for xfer."""
