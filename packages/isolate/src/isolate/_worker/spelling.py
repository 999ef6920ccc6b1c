"""Help with misspelt names in error messages."""

from __future__ import annotations


def suggest(name: str, known: list[str]) -> str:
    """Return a clause that names the nearest known name, or lists all of them if none is near."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known)) or 'none'}"
