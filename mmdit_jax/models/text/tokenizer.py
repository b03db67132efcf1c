"""Captions to token numbers: transformers' tokenizers, read from where a text encoder's folder has them."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdit_jax.errors import UserError

log = logging.getLogger(__name__)

SD3_FOLDERS = {
    "clip_l": ("text_encoder", "tokenizer"),
    "clip_g": ("text_encoder_2", "tokenizer_2"),
    "t5": ("text_encoder_3", "tokenizer_3"),
}
"""Folders of SD3's repositories: an encoder's, and its tokenizer's beside it."""


class Tokenizer:
    """A tokenizer of transformers with rows of fixed length, cut or padded."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read the tokenizer in ``folder``.

        Raises:
            UserError: its files are missing or damaged, or need a package that isn't installed.
        """
        if not holds_tokenizer(name, folder):
            raise UserError(f"tokenizer={str(folder)!r}: expected {_expected(name)} in it")
        # Only its tokenizers are wanted here; it would say on stderr that it found no torch.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import CLIPTokenizer, T5Tokenizer

        cls = T5Tokenizer if name == "t5" else CLIPTokenizer
        try:
            self._tokenizer = cls.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # whatever its parsers raise: KeyError, json's, a plain Exception of the Rust side
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"tokenizer={str(folder)!r}: not readable by transformers ({reason})") from None
        self.vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.end: int = self._tokenizer.eos_token_id
        pad, usual = self._tokenizer.pad_token_id, self.end if name == "clip_l" else 0
        self.pad: int = usual if pad is None else pad
        if self.pad != usual:
            log.warning(f"{name}: its tokenizer pads with token {self.pad}; SD3 was trained with {usual}")

    def ids(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Token numbers int32 [N, length]: longer captions lose words before the end token, shorter ones are padded."""
        out = np.full((len(captions), length), self.pad, np.int32)
        if captions:
            rows = self._tokenizer(list(captions), truncation=True, max_length=length, padding=False)["input_ids"]
            for row, numbers in enumerate(rows):
                out[row, : len(numbers)] = numbers
        return out

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and the padding, the same whichever files they were read from."""
        return hashlib.sha256(repr((sorted(self.vocabulary.items()), self.end, self.pad)).encode()).hexdigest()


def holds_tokenizer(name: str, folder: Path) -> bool:
    """Whether a folder has the files of this encoder's tokenizer.

    Raises:
        UserError: it has only a SentencePiece model, and nothing here can read it.
    """
    if (folder / "tokenizer.json").is_file():
        return True
    if name != "t5":
        return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if (folder / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise UserError(f"tokenizer={str(folder)!r}: spiece.model needs `pip install sentencepiece`, or tokenizer.json")
    return (folder / "spiece.model").is_file()


def given_tokenizer(folder: Path | None, name: str) -> Path | None:
    """An encoder's tokenizer in a folder of several (tokenizer, tokenizer_2, tokenizer_3); None where it has not this.

    Raises UserError where it has none of them.
    """
    if folder is None:
        return None
    places = {encoder: folder / tokenizer for encoder, (_, tokenizer) in SD3_FOLDERS.items()}
    if not any(place.exists() for place in places.values()):
        raise UserError(
            f"tokenizers={folder}: expected a folder with {', '.join(p.name for p in places.values())} in it"
        )
    return places[name] if places[name].exists() else None


def find_tokenizer(name: str, path: Path) -> Path:
    """Where the tokenizer of the encoder at ``path`` (a folder or a file) is.

    Looked for in its folder, then beside it under the names that SD3's repositories have.

    Raises:
        UserError: it is in none of these places.
    """
    sibling = SD3_FOLDERS[name][1]
    if path.is_dir():
        # Repositories with one encoder call it text_encoder, whichever it is, and its tokenizer tokenizer.
        named = path.name.replace("text_encoder", "tokenizer", 1)
        places = [path, *(path.parent / other for other in dict.fromkeys((named, sibling)) if other != path.name)]
    else:
        places = [path.parent / sibling, path.parent.parent / sibling]
    for place in places:
        if holds_tokenizer(name, place):
            return place
    looked = ", ".join(str(place) for place in places)
    raise UserError(
        f"text encoder {path}: no tokenizer ({_expected(name)}) in {looked}; copy it there from an SD3 repository, "
        "or name its folder (mmdit sample: --tokenizers)"
    )


def _expected(name: str) -> str:
    return "tokenizer.json or spiece.model" if name == "t5" else "tokenizer.json, or vocab.json and merges.txt"
