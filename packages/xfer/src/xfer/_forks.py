"""Calls methods of objects around `os.fork`, for as long as the objects live."""

from __future__ import annotations

import os
from collections.abc import Callable

from xfer._weak_methods import WeakMethods

_before, _parent, _child = WeakMethods(), WeakMethods(), WeakMethods()


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
            methods.add(method)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_parent, after_in_child=_child)
