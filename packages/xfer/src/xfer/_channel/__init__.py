"""Streams of arrays between processes."""
