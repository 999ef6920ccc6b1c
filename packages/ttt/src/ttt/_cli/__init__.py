"""The command line."""

from ttt._cli.main import main

__all__ = ["main"]
