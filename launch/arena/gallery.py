"""Which images people are asked about: found once, at the start. Nothing that is not in this list is ever read."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.arena.png import stripped
from mmdit_jax.copies import RESULT
from mmdit_jax.errors import UserError

log = logging.getLogger(__name__)

CONFIG, METADATA, SAMPLES = "config.json", "metadata.jsonl", "samples"
AGAIN = 10_000
"""Added to the sample's number for each time that its prompt came before in the tree."""


@dataclass(frozen=True, order=True)
class Item:
    """What two runs both drew: the ``seed``-th image of a prompt, as in battles.csv."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Gallery:
    """The runs by name, sorted, and where each image lies."""

    runs: tuple[str, ...]
    images: Mapping[str, Mapping[Item, Path]]
    places: Mapping[str, Path]
    """Of each run the folder that its images must lie in, without links on the way."""

    def common(self, first: str, second: str) -> list[Item]:
        """What both have drawn, sorted; nothing of a run that is not here."""
        return sorted(self.images.get(first, {}).keys() & self.images.get(second, {}).keys())

    def png(self, run: str, item: Item) -> bytes:
        """The image as PNG, without anything that tells where it is from.

        Raises:
          OSError: it has gone, or is a link to elsewhere now.
          ValueError: it is no PNG file.
        """
        path = self.images[run][item]
        if not _within(path, self.places[run]):
            raise OSError(f"{path}: leads out of {self.places[run]}")
        return stripped(path.read_bytes())


def open_gallery(root: Path) -> Gallery:
    """The images of a study, of a root of studies, or of any folder of GenEval-shaped trees.

    A tree has NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png. A run is named by its config.json, a tree without one
    by its folder. Runs without a result are left out, and so are links that lead out of a tree.

    Raises:
      UserError: no such folder, a damaged file, or no two runs with a prompt in common.
    """
    if "://" in str(root):
        raise UserError(f"root={str(root)!r}: expected a folder of this machine; copy the study's samples here")
    if not root.is_dir():
        raise UserError(f"root={str(root)!r}: no such folder; expected a study's folder, as studies/quickstart")
    found = [place for place in _trees(root) if _within(place[1], root.resolve())]
    studies = {study for study, _, _ in found}
    named: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for study, tree, run in found:
        name = _name(run)
        named[f"{study}/{name}" if len(studies) > 1 and study else name].append((run.name, tree))
    trees = {}
    for name, places in named.items():
        for folder, tree in places:
            trees[name if len(places) == 1 else f"{name} ({folder})"] = tree
    images = {name: dict(_images(tree)) for name, tree in sorted(trees.items())}
    gallery = Gallery(tuple(images), images, {name: tree.resolve() for name, tree in trees.items()})
    if len(images) < 2:
        told = ", ".join(images) or "none"
        raise UserError(f"root={str(root)!r}: expected two or more runs with samples, found {told}")
    if not any(gallery.common(a, b) for a in images for b in images if a < b):
        raise UserError(f"root={str(root)!r}: no prompt that two of its {len(images)} runs have both drawn")
    return gallery


def _trees(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """(study or "", tree, folder that names it) of all trees up to two folders below; none within a run or a tree."""
    for folder in _folders(root):
        if (found := _tree(folder)) is not None:
            yield from (("", tree, folder) for tree in found)
            continue
        for below in _folders(folder):
            yield from ((folder.name, tree, below) for tree in _tree(below) or ())


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    except OSError as error:
        raise UserError(f"root={str(folder)!r}: can't be read ({error.strerror})") from error


def _tree(folder: Path) -> list[Path] | None:
    """The tree that ``folder`` is or has as samples, if the run is done; None where it is neither run nor tree."""
    if (folder / CONFIG).exists() and not (folder / RESULT).exists():
        log.warning("%s: left out, the run is not done", folder)
        return []
    for tree in (folder, folder / SAMPLES):
        if next(tree.glob(f"[0-9]*/{METADATA}"), None) is not None:
            return [tree]
    return [] if (folder / CONFIG).exists() else None


def _name(run: Path) -> str:
    path = run / CONFIG
    if not path.exists():
        return run.name
    try:
        return str(json.loads(path.read_text())["config"]["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"config={path}: damaged ({error}); expected a run's config.json") from error


def _images(tree: Path) -> Iterator[tuple[Item, Path]]:
    inside, came = tree.resolve(), defaultdict[str, int](int)
    for place in sorted(path.parent for path in tree.glob(f"[0-9]*/{METADATA}")):
        prompt = _prompt(place / METADATA, inside)
        if prompt is None:
            continue
        for path in sorted((place / SAMPLES).glob("[0-9]*.png")):
            if path.stem.isascii() and path.stem.isdigit() and _within(path, inside):
                yield Item(prompt, came[prompt] * AGAIN + int(path.stem)), path
        came[prompt] += 1


def _prompt(path: Path, inside: Path) -> str | None:
    if not _within(path, inside):
        return None
    try:
        prompt = json.loads(path.read_text())["prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'metadata={path}: damaged ({error}); expected a JSON object with "prompt"') from error
    return str(prompt)


def _within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder once all links are followed; it is told where not."""
    inside = path.resolve().is_relative_to(folder)
    if not inside:
        log.warning("%s: left out, it leads out of %s", path, folder)
    return inside
