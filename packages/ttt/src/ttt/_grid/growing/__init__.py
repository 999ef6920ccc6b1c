"""Rules that paint a cell by what is around it, repeated until nothing changes."""
