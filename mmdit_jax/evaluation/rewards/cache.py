"""The file of scores: one row an image and judge, written as they come, so that nothing is scored twice.

A score is found again by the bytes of the image, the prompt, and the judge's fingerprint: a run that is drawn anew is
scored anew, one that got another name is not.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic

_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Score:
    """A row."""

    name: str
    """The player's."""
    prompt: str
    sample: int
    judge: str
    score: float
    image: str
    """Hash of the image's file; 16 hexadecimal digits."""
    weights: str
    """The judge's fingerprint, last and of fixed length: a row that was cut short shows."""

    @property
    def place(self) -> tuple[str, str, int, str]:
        """What there is one score of."""
        return self.name, self.prompt, self.sample, self.judge


COLUMNS = [field.name for field in dataclasses.fields(Score)]


def image_hash(path: Path) -> str:
    """Hash of a file's bytes. Raises UserError where it can't be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=_DIGITS // 2).hexdigest()
    except OSError as error:
        raise UserError(f"image={path}: can't be read ({error.strerror})") from None


class ScoreFile:
    """A CSV file of scores, held by one process at a time, as a context.

    Rows go to disk as they are added. What a kill cut short is dropped by the next process; rows that newer ones
    supersede (another image or other weights at the same place) are dropped at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Score] = []
        """In the file's order."""
        self._known: dict[tuple[str, str, str, str], float] = {}
        self._newest: dict[tuple[str, str, int, str], Score] = {}

    def __enter__(self) -> ScoreFile:
        """Raises UserError: another process has the file, or it is none of scores."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._hold()
        try:
            data = self._file.read()
            rows, whole = _parse(data, self.path)
            if whole < len(data):
                self._file.truncate(whole)
            self._file.seek(0, os.SEEK_END)
            if not whole:
                self._file.write(_line(COLUMNS))
            self._take(rows)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.flush()
        if len(self._newest) < len(self.rows):
            rows = [COLUMNS, *(_fields(row) for row in self._newest.values())]
            write_atomic(self.path, b"".join(map(_line, rows)))
        self._file.close()

    def get(self, judge: str, weights: str, prompt: str, image: str) -> float | None:
        """The score of such an image, whoever drew it; None where there is none yet."""
        return self._known.get((judge, weights, prompt, image))

    def add(self, rows: Iterable[Score]) -> None:
        """Take rows in; those that are new are on disk when this returns."""
        new = [row for row in rows if self._newest.get(row.place) != row]
        if new:
            self._file.write(b"".join(_line(_fields(row)) for row in new))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._take(new)

    def _take(self, rows: Sequence[Score]) -> None:
        self.rows += rows
        self._newest.update((row.place, row) for row in rows)
        self._known.update(((row.judge, row.weights, row.prompt, row.image), row.score) for row in rows)

    def _hold(self) -> BinaryIO:
        while True:
            file = self.path.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    file.seek(0)
                    return file
            except BlockingIOError:
                file.close()
                raise UserError(
                    f"scores={self.path}: another process writes there; wait, or take another --out"
                ) from None
            except FileNotFoundError:
                pass
            except BaseException:
                file.close()
                raise
            file.close()  # it was replaced by the process that had it before


def _parse(data: bytes, path: Path) -> tuple[list[Score], int]:
    """Rows, and the number of bytes up to the last one that is whole."""
    if _line(COLUMNS)[:-1].startswith(data):
        return [], 0  # the very first write was cut short, or there was none
    lines = list(io.StringIO(data.decode(errors="replace"), newline="\n"))
    reader = csv.reader(lines)
    rows: list[Score] = []
    whole = taken = 0
    for fields in reader:
        here = lines[taken : reader.line_num]
        taken = reader.line_num
        if whole == 0:
            if fields != COLUMNS:
                raise UserError(
                    f"scores={path}: columns {','.join(fields)}; expected {','.join(COLUMNS)}: another file"
                )
        else:
            row = _row(fields)
            if row is None or not here[-1].endswith("\n"):
                if taken < len(lines):
                    raise UserError(f"scores={path}: line {taken} is damaged; remove it, or the file")
                break
            rows.append(row)
        whole += sum(len(line.encode()) for line in here)
    return rows, whole


def _row(fields: Sequence[str]) -> Score | None:
    if len(fields) != len(COLUMNS) or len(fields[-1]) != _DIGITS:
        return None
    name, prompt, sample, judge, score, image, weights = fields
    try:
        return Score(name, prompt, int(sample), judge, float(score), image, weights)
    except ValueError:
        return None


def _fields(row: Score) -> list[str]:
    return [row.name, row.prompt, str(row.sample), row.judge, repr(row.score), row.image, row.weights]


def _line(fields: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).writerow(fields)
    return text.getvalue().encode()
