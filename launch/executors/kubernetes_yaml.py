"""YAML that all its readers take alike: Python's (1.1), Go's (a mixture), and people."""

from __future__ import annotations

import re
from typing import Any

import yaml

_NO_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Plain, some reader takes them for something else."""


def as_yaml(document: dict[str, Any]) -> str:
    """A document. Strings are in quotes unless they are plain words: 1e5 is a number to Go, and not to Python."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: what is said twice is written twice."""
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch(r"[A-Za-z][-A-Za-z0-9./_]*", text) and text.lower() not in _NO_WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    """Numbers on one line, other things below one another."""
    flow = bool(items) and all(isinstance(item, int) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(list, _list)
