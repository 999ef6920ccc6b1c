"""Reads YAML without tags, anchors or duplicates, and records the line of every key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

_MAX_DEPTH = 16
_MAX_EVENTS = 20_000
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}


class YamlError(ValueError):
    """A document that is not YAML, or more than the harmless part of it; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """Parse one document.

    Returns:
        The value, and the line of each entry by its path (`limits.memory`, `dependencies[0]`).
    """
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        raise YamlError(f"not YAML: {failure.problem or failure.context}", mark.line + 1 if mark else 1) from None
    except yaml.YAMLError as failure:
        raise YamlError(f"not YAML: {failure}", 1) from None
    lines: dict[str, int] = {}
    return (None if node is None else _build(node, "", lines, yaml.constructor.SafeConstructor())), lines


def _check_events(text: str) -> None:
    depth = 0
    events: Iterable[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    for count, event in enumerate(events):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlError("anchors and aliases are not allowed; write the value out", line)
        if getattr(event, "tag", None) is not None:
            raise YamlError(f"the tag {event.tag} is not allowed; write a plain value", line)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or count > _MAX_EVENTS:
            raise YamlError(
                f"the document is deeper than {_MAX_DEPTH} levels or longer than {_MAX_EVENTS} entries", line
            )


def _build(node: Any, path: str, lines: dict[str, int], constructor: Any) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.ScalarNode):
        if node.tag not in _SCALARS:
            return node.value
        try:
            return constructor.construct_object(node)
        except ValueError as failure:
            raise YamlError(f"{path}: {failure}", line) from None
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}[{index}]", lines, constructor) for index, item in enumerate(node.value)]
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError("a key is not a plain text", line)
        key = key_node.value
        if key in built:
            raise YamlError(f"the key {key!r} appears twice", line)
        where = f"{path}.{key}" if path else key
        lines[where] = line
        built[key] = _build(value_node, where, lines, constructor)
    return built
