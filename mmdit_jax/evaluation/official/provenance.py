"""What made the files of a folder: written beside them first, and compared by whoever goes on with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_json

_END = 2**20


def made_by(path: Path, what: str) -> dict[str, Any] | None:
    """What made the files beside ``path``; none where nothing has said so.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        return dict(told)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}={path}: damaged; give another --out") from error


def claim(path: Path, told: Mapping[str, Any], what: str) -> None:
    """Write ``told``, what makes the files beside ``path``, or make sure that it is what has made them so far.

    Raises:
        UserError: something else has, or the file is damaged.
    """
    told = json.loads(json.dumps(told))  # as it is read back
    before = made_by(path, what)
    if before is None:
        write_json(path, told)
        return
    for name in {**before, **told}:
        if before.get(name) != told.get(name):
            raise UserError(
                f"{what}={path}: begun with {name}={before.get(name)!r}, now {told.get(name)!r}; give another "
                "--out, or delete what is there"
            )


def fingerprint_of_files(place: Path) -> str:
    """Of a checkpoint: a hash of its files' names, sizes, and first and last mebibyte.

    Hidden files and folders are left out: downloaders keep their notes there, with times that no two hosts share.
    """
    digest = hashlib.sha256()
    inside = sorted(path for path in place.rglob("*") if path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    for path in [place] if place.is_file() else shown:
        size = path.stat().st_size
        digest.update(f"{'' if path == place else path.relative_to(place)} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read())
    return digest.hexdigest()[:16]
