"""Which images people are asked about: found once, at the start. Nothing that is not in this list is ever read."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.arena.png import stripped
from mmdit_jax.copies import RESULT
from mmdit_jax.errors import UserError
from mmdit_jax.seed_names import names_of

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
    images: Mapping[str, Mapping[Item, str]]
    places: Mapping[str, Path]
    """Of each run the folder that its images must lie in, without links on the way."""
    _drawn: dict[str, frozenset[Item]] = field(init=False, repr=False)
    _common: dict[frozenset[frozenset[Item]], list[Item]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        sets: dict[frozenset[Item], frozenset[Item]] = {}
        drawn = {run: frozenset(images) for run, images in self.images.items()}
        object.__setattr__(self, "_drawn", {run: sets.setdefault(own, own) for run, own in drawn.items()})

    def common(self, first: str, second: str) -> list[Item]:
        """What both have drawn, sorted; nothing of a run that is not here.

        Kept by what they have drawn, which of most runs is the same: pairs are many thousand, and their images more.
        """
        if first not in self._drawn or second not in self._drawn:
            return []
        one, two = self._drawn[first], self._drawn[second]
        key = frozenset((one, two))
        if key not in self._common:
            self._common[key] = sorted(one & two)
        return self._common[key]

    def both(self, first: str, second: str, item: Item) -> bool:
        """Whether both have drawn it."""
        return all(item in self.images.get(run, ()) for run in (first, second))

    def png(self, run: str, item: Item) -> bytes:
        """The image as PNG, without anything that tells where it is from.

        Raises:
          OSError: it has gone, or is a link to elsewhere now.
          ValueError: it is no PNG file.
        """
        path = Path(self.images[run][item])
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
    if not root.is_dir():
        raise UserError(f"root={str(root)!r}: no such folder; expected a study's folder, as studies/quickstart")
    found = [place for place in _trees(root) if _within(place[1], root.resolve())]
    studies = {study for study, _, _ in found}
    named: dict[str, dict[Path, Path]] = defaultdict(dict)
    for study, tree, run in found:
        name = _name(run)
        named[f"{study}/{name}" if len(studies) > 1 and study else name][tree] = run
    trees: dict[str, Path] = {}
    for name, runs in named.items():
        labels = _labels(name, list(runs.values()))
        if any(label in named for label in labels if label != name):
            labels = [f"{name} ({run.name})" for run in runs.values()]
        trees.update(zip(labels, runs, strict=True))
    items: dict[Item, Item] = {}  # one object for the same image of all runs
    images = {
        name: {items.setdefault(item, item): path for item, path in _images(tree)}
        for name, tree in sorted(trees.items())
    }
    gallery = Gallery(tuple(images), images, {name: tree.resolve() for name, tree in trees.items()})
    if len(images) < 2:
        if (root / CONFIG).exists():
            raise UserError(
                f"root={str(root)!r}: is a single run; expected its study's folder, {root.resolve().parent}"
            )
        told = f"only {next(iter(images))!r}" if images else "none"
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


def _labels(name: str, runs: Sequence[Path]) -> list[str]:
    """What runs of one name are called: those that differ by seed alone as in their study's tables, so that votes on
    the first one stay its own when others come; else each with its folder beside the name."""
    if len(runs) == 1:
        return [name]
    configs = [_config(run) for run in runs]
    labels = names_of([{**config, "name": name} for config in configs if config is not None])
    return labels if len(set(labels)) == len(runs) else [f"{name} ({run.name})" for run in runs]


def _name(run: Path) -> str:
    config = _config(run)
    return run.name if config is None else str(config["name"])


def _config(run: Path) -> dict[str, Any] | None:
    """What the run's config.json says of it, its name at least; None of a tree without one."""
    path = run / CONFIG
    if not path.exists():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text())["config"]
        return {**config, "name": config["name"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"config={path}: damaged ({error}); expected a run's config.json") from error


def _images(tree: Path) -> Iterator[tuple[Item, str]]:
    inside, came = tree.resolve(), defaultdict[str, int](int)
    for place in _entries(tree, inside):
        metadata = Path(place.path) / METADATA
        if not place.name[0].isdigit() or not metadata.exists():
            continue
        if metadata.is_symlink() and not _within(metadata, inside):
            continue
        prompt = _prompt(metadata)
        for entry in _entries(Path(place.path) / SAMPLES, inside):
            stem, _, suffix = entry.name.rpartition(".")
            if suffix != "png" or not (stem.isascii() and stem.isdigit()):
                continue
            if int(stem) >= AGAIN:
                log.warning("%s: left out, samples are numbered below %d", entry.path, AGAIN)
                continue
            yield Item(prompt, came[prompt] * AGAIN + int(stem)), entry.path
        came[prompt] += 1


def _entries(folder: Path, inside: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without links that lead out of ``inside``: only links are followed, since a
    study has half a million files."""
    if folder.is_symlink() and not _within(folder, inside):
        return []
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [entry for entry in entries if not entry.is_symlink() or _within(Path(entry.path), inside)]


def _prompt(path: Path) -> str:
    """Raises UserError where there is none, or one that neither a database nor a line of CSV can hold."""
    try:
        prompt = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])["prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'metadata={path}: damaged ({error}); expected a JSON object with "prompt"') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"metadata={path}: prompt={prompt!r}; expected some words")
    if strange := [
        letter for letter in prompt if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"
    ]:
        raise UserError(f"metadata={path}: prompt={prompt!r}; expected no {strange[0]!r} in it")
    return prompt


def _within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder once all links are followed; it is told where not."""
    inside = path.resolve().is_relative_to(folder)
    if not inside:
        log.warning("%s: left out, it leads out of %s", path, folder)
    return inside
