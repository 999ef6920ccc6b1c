"""The segment file: its format, and writing, checking and mapping it. See docs/segment-format.md."""
