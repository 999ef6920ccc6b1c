"""An extension is plain Python; it imports nothing of isolate."""

from collections.abc import Callable, Iterator
from typing import Any


class Extension:
    """Its public methods are what the host can call."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def lengths(self, sentence: str) -> list[int]:
        """The lengths of the words; the host keeps a note of the sentence."""
        self.host.call.notes.keep("sentence", sentence)
        return [len(word) for word in sentence.split()]

    def longest_first(self, sentence: str) -> Iterator[str]:
        """The words, one by one."""
        yield from sorted(sentence.split(), key=len, reverse=True)

    def each(self, sentence: str, function: Callable[[str], Any]) -> list[Any]:
        """What a function of the host makes of each word."""
        return [function(word) for word in sentence.split()]
