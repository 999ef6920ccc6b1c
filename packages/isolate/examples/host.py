"""A host with three extensions, one of them broken: python host.py.

Copy this folder to begin with: `extensions/` holds one folder for each extension, with a manifest and plain Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

from isolate import Host, ProxiedSingleton


class NotesSingleton(ProxiedSingleton):
    """What extensions may use of this application: they can keep notes and read them."""

    def __init__(self) -> None:
        self._notes: dict[str, object] = {}

    def keep(self, key: str, value: object) -> None:
        """Keep a note."""
        self._notes[key] = value

    def all(self) -> dict[str, object]:
        """All notes."""
        return dict(self._notes)


def main(store: str | None = None) -> int:
    """Load what can be loaded, say what cannot, and let the extensions work."""
    with Host(store) as host:
        notes = host.export(NotesSingleton)
        loaded = host.load_all(Path(__file__).parent / "extensions")
        for name, error in sorted(loaded.errors.items()):
            print(f"{name} was not loaded: {type(error).__name__}: {error}")
        words, statistics = host["words"], host["statistics"]
        lengths = words.call.lengths("plugins that cannot break each other")
        print("numpy in the extension:", statistics.call.version())
        print("summary:", statistics.call.summary(lengths))
        for word in words.call.longest_first("a plain sentence"):
            print("streamed:", word)
        print("words can call back:", words.call.each("x yy", lambda word: len(word) * 2))
        print("notes:", notes.all())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
