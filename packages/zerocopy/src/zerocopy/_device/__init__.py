"""One copy of a segment's weights per GPU: made by the first process that loads it there, and mapped by the others."""
