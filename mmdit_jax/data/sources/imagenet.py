"""ImageNet as it is unpacked: a folder for each class, captions from class names ("a photo of a …")."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mmdit_jax.data.sources.folder import FolderSource
from mmdit_jax.data.sources.interface import Entry, Item
from mmdit_jax.errors import UserError

NAMES = ("LOC_synset_mapping.txt", "classes.json", "classes.txt")
"""Files with class names, looked for in the folder and beside it."""


def sentence(name: str) -> str:
    """The caption of a class, after the first of its names (SD3 §5.1: "a photo of a ⟨class name⟩")."""
    return f"a photo of a {name.split(',')[0].replace('_', ' ').strip()}"


class ImageNetSource:
    """``FOLDER/n01440764/*.JPEG``: images in the order of their paths, which are their keys.

    Args:
        folder: holds a folder for each class.
        names: file of class names, lines ``n01440764 tench, Tinca tinca`` or a JSON object; None: found in the folder,
            or up to three levels above it.

    Raises:
        UserError: no names, names that can't be read, or a class folder without one.
    """

    def __init__(self, folder: Path, names: Path | None = None) -> None:
        self._inner = FolderSource(folder)
        path = names or next(
            (
                place / name
                for place in (folder, *list(folder.absolute().parents)[:3])
                for name in NAMES
                if (place / name).is_file()
            ),
            None,
        )
        if path is None:
            raise UserError(f"class-names: none of {', '.join(NAMES)} in {folder} or above it; give --class-names FILE")
        self._names = read_names(path)
        lacking = sorted(
            {Path(entry.key).parts[0] for part in range(self._inner.parts) for entry in self._inner.entries(part)}
            - set(self._names)
        )
        if lacking:
            raise UserError(
                f"class-names={path}: no name for {lacking[0]!r}"
                + (f" and {len(lacking) - 1} more" if lacking[1:] else "")
            )
        self.name = f"imagenet:{folder.absolute()}"
        self.parts = self._inner.parts
        digest = hashlib.blake2b(self._inner.fingerprint.encode(), digest_size=16)
        digest.update(json.dumps(self._names, sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()

    def entries(self, part: int) -> list[Entry]:
        """The images of a part."""
        return self._inner.entries(part)

    def read(self, entry: Entry) -> Item:
        """An image, captioned by the folder that it is in."""
        return Item(self._inner.read_image(entry), sentence(self._names[Path(entry.key).parts[0]]), None)


def read_names(path: Path) -> dict[str, str]:
    """Names of classes by synset.

    Raises:
        UserError: the file isn't there, or has no such names.
    """
    try:
        text = path.read_text()
        if path.suffix == ".json":
            value = json.loads(text)
            # {"0": ["n01440764", "tench"], …} is another usual spelling.
            found = {
                str(k): v for k, v in (v if isinstance(v, list) and len(v) == 2 else (k, v) for k, v in value.items())
            }
        else:
            found = dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip())
        if not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"class-names={path}: expected lines of `n01440764 tench`, or a JSON object of these") from None
    return found
