"""The image tree that GenEval's scorer walks: NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png.

Images come there one by one, whole or not at all, from several processes if need be. Beside the tree's folders lies a
file that says what draws it (``provenance``), so that no second model's images get among the first one's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.metadata import Question, parse
from mmdit_jax.files import write_atomic

DRAWN_BY = "drawn_by.json"
METADATA = "metadata.jsonl"
SAMPLES = 4096
"""The most of a prompt: the noise of sample k of prompt n is that of index n · SAMPLES + k, whatever else is drawn."""


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``of``, counted from 1: every ``of``-th prompt, for one of several hosts."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """As "2/8".

        Raises:
            UserError: not of this kind.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        part = cls(*map(int, found.groups())) if found else None
        if part is None or not 1 <= part.number <= part.of:
            raise UserError(f"part={text!r}: expected NUMBER/OF, from 1/{part.of if part and part.of else 8} on")
        return part

    def holds(self, prompt: int) -> bool:
        """Whether the prompt of that number, from 0, is in it."""
        return prompt % self.of == self.number - 1


@dataclass(frozen=True)
class Asked:
    """A prompt of a tree and its images."""

    number: int
    question: Question
    images: tuple[Path, ...]


def folder_of(tree: Path, prompt: int) -> Path:
    """The folder of a prompt."""
    return tree / f"{prompt:05d}"


def image_path(tree: Path, prompt: int, sample: int) -> Path:
    """Where an image lies."""
    return folder_of(tree, prompt) / "samples" / f"{sample:04d}.png"


def noise_indices(images: Sequence[tuple[int, int]]) -> np.ndarray:
    """Indices of the noise of (prompt, sample): int32 [N]."""
    return np.array([prompt * SAMPLES + sample for prompt, sample in images], np.int32)


def wanted(tree: Path, prompts: int, count: int, part: Part, *, only_missing: bool = True) -> list[tuple[int, int]]:
    """(prompt, sample) of the images to draw, in order: all of ``part``, or those that are not there yet.

    Raises:
        UserError: more prompts or samples than there are numbers for, or fewer than 1.
    """
    if not 1 <= count <= SAMPLES:
        raise UserError(f"count={count}: expected 1 to {SAMPLES}")
    if prompts * SAMPLES > 2**31:
        raise UserError(f"geneval={prompts} prompts: expected {2**31 // SAMPLES} at the most")
    every = [(prompt, sample) for prompt in range(prompts) if part.holds(prompt) for sample in range(count)]
    return [image for image in every if not (only_missing and image_path(tree, *image).exists())]


def write_questions(tree: Path, questions: Sequence[Question], prompts: Iterable[int]) -> None:
    """Write the metadata of those prompts, where it is not there yet.

    Raises:
        UserError: another prompt has that number in this tree.
    """
    for number in prompts:
        path = folder_of(tree, number) / METADATA
        (path.parent / "samples").mkdir(parents=True, exist_ok=True)
        if path.exists():
            there = _question(path)
            if there != questions[number]:
                raise UserError(
                    f"tree={path.parent}: there is {there.prompt!r}, asked is {questions[number].prompt!r}; give "
                    "another --out"
                )
        else:
            write_atomic(path, questions[number].to_json() + "\n")


def write_image(path: Path, image: np.ndarray) -> None:
    """One uint8 [H, W, 3] image as a PNG file, whole or not at all."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG")
    write_atomic(path, data.getvalue())


def walk(tree: Path, part: Part) -> list[Asked]:
    """What a part of a tree holds, in order of its numbers; the images are not opened, nor are other parts looked at.

    Raises:
        UserError: there is no tree, or a prompt of the part lacks its metadata or has fewer images than others.
    """
    places = [place for place in tree.glob("*") if place.is_dir() and place.name.isdecimal()] if tree.is_dir() else []
    if not places:
        raise UserError(f"tree={tree}: no folders 00000, 00001, …; expected GenEval's image tree")
    places = [place for place in places if part.holds(int(place.name))]
    if not places:
        raise UserError(f"part={part.number}/{part.of}: {tree} has no prompt of this part")
    found = []
    for place in sorted(places, key=lambda place: int(place.name)):
        images = sorted(path for path in place.glob("samples/*.png") if path.stem.isdecimal())
        found.append(Asked(int(place.name), _question(place / METADATA), tuple(images)))
    most = max(len(asked.images) for asked in found)
    lacking = [asked for asked in found if len(asked.images) < max(most, 1)]
    if lacking:
        first = lacking[0]
        raise UserError(
            f"tree={tree}: {len(lacking)} of {len(found)} prompts lack images, as {first.number:05d} with "
            f"{len(first.images)} of {max(most, 1)}; draw them first, the same command goes on"
        )
    return found


def gaps(numbers: Iterable[int], part: Part) -> list[int]:
    """The prompts of a part that are not among ``numbers``, up to the largest of these: drawn or scored by nobody."""
    there = set(numbers)
    return [number for number in range(max(there, default=-1) + 1) if part.holds(number) and number not in there]


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 [H, W, 3], turned as its file says.

    Raises:
        UserError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"image={path}: can't be read ({error}); delete it, and draw it again") from error


def _question(path: Path) -> Question:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"metadata={path}: can't be read ({error})") from error
    except UserError as error:
        raise UserError(f"metadata={path}: {error}") from error
