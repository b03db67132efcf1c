"""Values of configs: checked, as plain JSON and back, and one changed from the command line."""

from __future__ import annotations

import ast
import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mmdit_jax.errors import UserError, nearest

T = TypeVar("T")


def require(ok: bool, field_name: str, value: object, expected: str) -> None:
    """Refuse a field's value unless it is ``ok``, saying what is expected."""
    if not ok:
        raise UserError(f"{field_name}={value!r}: expected {expected}")


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_positive(owner: object, *names: str) -> None:
    """Refuse fields of a config that are no whole numbers from 1 on."""
    for name in names:
        value = vars(owner)[name]
        require(is_whole(value) and value >= 1, name, value, "a whole number, 1 or more")


def require_seed(name: str, value: Any) -> None:
    """Refuse what JAX does not take for a seed."""
    require(is_whole(value) and 0 <= value < 2**32, name, value, "a whole number, 0 to 2**32 - 1")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists)."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """A config of that kind from what ``to_dict`` made of one; fields that came later have their defaults.

    Raises:
      UserError: a field that the kind does not have, or a value out of its range.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise UserError(f"{kind.__name__}.{name}: unknown field; it was written by another version")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        inner = typing.get_args(hint)
        items = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_typed(item, part) for item, part in zip(items, value, strict=True))
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        (other,) = [item for item in typing.get_args(hint) if item is not types.NoneType]
        return _typed(other, value)
    return value


def overridden(config: Any, items: Iterable[str]) -> Any:
    """``config`` with every ``field=value`` of ``items`` set, one after the other, as ``override`` does."""
    for item in items:
        path, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r}: expected field=value, such as optimizer.learning_rate=1e-3")
        config = override(config, path.strip(), text.strip())
    return config


def override(config: Any, path: str, text: str, _full: str | None = None) -> Any:
    """``config`` with the dotted field ``path`` set to ``text`` read as a Python literal, or else as a string, of which
    commas make several where the field has a tuple.

    Raises UserError for an unknown field (with the nearest one), or a value of another type than the present one.
    """
    full = _full or path
    head, _, rest = path.partition(".")
    names = [item.name for item in dataclasses.fields(config)]
    if head not in names:
        raise UserError(
            f"{full}: unknown field {head!r} of {type(config).__name__}; did you mean {nearest(head, names)!r}?"
        )
    old = vars(config)[head]
    if rest:
        if not dataclasses.is_dataclass(old):
            raise UserError(f"{full}: {head!r} has no fields of its own")
        return dataclasses.replace(config, **{head: override(old, rest, text, full)})
    if dataclasses.is_dataclass(old):
        raise UserError(f"{full}: a group of fields; set one of {', '.join(vars(old))}")
    return dataclasses.replace(config, **{head: _literal(full, text, old)})


def _literal(name: str, text: str, old: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, (list, str)):
        value = tuple(item.strip() for item in value.split(",")) if isinstance(value, str) else tuple(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"{name}={text!r}: expected {type(old).__name__}, such as {old!r}")
    return value
