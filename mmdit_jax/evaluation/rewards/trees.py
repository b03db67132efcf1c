"""Trees of images in GenEval's shape: which there are below a path, and what is in one."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit_jax.errors import UserError
from mmdit_jax.seed_names import names_of

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_CONFIG, _RESULT, _SAMPLES = "config.json", "result.json", "samples"


@dataclass(frozen=True)
class Tree:
    """Images of one player."""

    name: str
    folder: Path
    """Holds NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png."""


@dataclass(frozen=True)
class Picture:
    """One image of a tree."""

    name: str
    """The player's."""
    prompt: str
    sample: int
    """Its file's number; where a prompt has several folders, numbers go on from one to the next."""
    path: Path
    metadata: str
    """The first line of metadata.jsonl."""


def find_trees(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[Tree]:
    """The trees at paths, each a tree, a run's directory, or a study's with all of its finished runs.

    Args:
        paths: one or more.
        names: of the trees, in their order; None: a run's from its config.json, otherwise the folder's. Runs of a
            study that differ by seed alone are told apart as in its tables (``seed_names``).

    Raises:
        UserError: no tree at a path, fewer than two, two of one name, or not as many names as trees.
    """
    found = [tree for path in paths for tree in _trees(path.expanduser())]
    if names is not None:
        if len(names) != len(found):
            raise UserError(f"names={','.join(names)}: {len(names)} for {len(found)} trees; expected one for each")
        found = [Tree(name, tree.folder) for name, tree in zip(names, found, strict=True)]
    counts = Counter(tree.name for tree in found)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        places = ", ".join(str(tree.folder) for tree in found if tree.name == twice[0])
        raise UserError(f"trees={places}: all named {twice[0]!r}; tell them apart by --names")
    if len(found) < 2:
        raise UserError(f"trees={', '.join(str(tree.folder) for tree in found)}: expected two or more to compare")
    return found


def _trees(path: Path) -> list[Tree]:
    if not path.is_dir():
        raise UserError(f"tree={path}: no such folder")
    if _is_tree(path):
        home = path.parent if path.name == _SAMPLES else path
        return [Tree(_run_name(home) or home.resolve().name, path)]
    if _is_tree(path / _SAMPLES):
        return [Tree(_run_name(path) or path.resolve().name, path / _SAMPLES)]
    begun = [folder for folder in sorted(path.iterdir()) if (folder / _CONFIG).is_file()]
    done = [folder for folder in begun if (folder / _RESULT).is_file() and _is_tree(folder / _SAMPLES)]
    names = names_of([_config(folder) or {"name": folder.name} for folder in done])
    runs = [Tree(name, folder / _SAMPLES) for name, folder in zip(names, done, strict=True)]
    if runs and len(runs) < len(begun):
        log.warning(
            "%s: %d of %d runs are not done, or have drawn nothing: left out", path, len(begun) - len(runs), len(begun)
        )
    if not runs:
        raise UserError(
            f"tree={path}: neither images (NNNNN/metadata.jsonl, NNNNN/samples/NNNN.png), nor a run's directory, nor a "
            "study's with a finished run that has drawn"
        )
    return runs


def _is_tree(folder: Path) -> bool:
    return folder.is_dir() and any((place / "metadata.jsonl").is_file() for place in _places(folder))


def _places(folder: Path) -> Iterator[Path]:
    yield from sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def _run_name(folder: Path) -> str | None:
    """The name in a run's config.json; None where there is no such file, or it tells of no run."""
    config = _config(folder)
    return None if config is None else str(config["name"])


def _config(folder: Path) -> dict[str, Any] | None:
    """A run's config, which has its name; None where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text())["config"]
        return config if isinstance(config["name"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_tree(tree: Tree) -> list[Picture]:
    """All images of a tree in their order, none of them opened.

    Raises:
        UserError: a folder without a prompt, or with an empty one.
    """
    pictures: list[Picture] = []
    after: Counter[str] = Counter()
    for place in _places(tree.folder):
        line, prompt = _prompt(place / "metadata.jsonl")
        paths = sorted(path for path in (place / "samples").glob("*") if path.suffix.lower() in SUFFIXES)
        numbers = [int(path.stem) if path.stem.isdigit() else i for i, path in enumerate(paths)]
        first = after[prompt]
        for number, path in zip(numbers, paths, strict=True):
            pictures.append(Picture(tree.name, prompt, first + number, path, line))
            after[prompt] = max(after[prompt], first + number + 1)
    if not pictures:
        raise UserError(f"tree={tree.folder}: no images in NNNNN/samples ({', '.join(SUFFIXES)})")
    return pictures


def _prompt(path: Path) -> tuple[str, str]:
    try:
        line = path.read_text().partition("\n")[0]
        prompt = json.loads(line)["prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{error.strerror}" if isinstance(error, OSError) else "not JSON with a prompt"
        raise UserError(f'metadata={path}: {told}; expected a line as {{"prompt": "a red circle"}}') from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"metadata={path}: prompt={prompt!r}; expected some words")
    return line, prompt


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 [H, W, 3], whatever its mode.

    Raises:
        UserError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image={path}: can't be read ({error}); draw it again") from None
