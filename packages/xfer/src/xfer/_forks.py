"""Calls methods of objects around `os.fork`, for as long as the objects live."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_before: list[weakref.WeakMethod[Any]] = []
_parent: list[weakref.WeakMethod[Any]] = []
_child: list[weakref.WeakMethod[Any]] = []


def on_fork(
    *,
    before: Callable[[], None] | None = None,
    parent: Callable[[], None] | None = None,
    child: Callable[[], None] | None = None,
) -> None:
    """Call bound methods around each fork while their object lives.

    Args:
        before: Called in the parent before the fork.
        parent: Called in the parent after it.
        child: Called in the child.
    """
    for methods, method in ((_before, before), (_parent, parent), (_child, child)):
        if method is not None:
            methods.append(weakref.WeakMethod(method, methods.remove))


def _call(methods: list[weakref.WeakMethod[Any]]) -> None:
    for reference in list(methods):
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _call(_before), after_in_parent=lambda: _call(_parent), after_in_child=lambda: _call(_child)
    )
