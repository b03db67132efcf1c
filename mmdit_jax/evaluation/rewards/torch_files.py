"""What the reward models share of torch and its files. They were published for torch, and there they stay."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit_jax.errors import UserError
from mmdit_jax.models.tensors import compare

_TOLD = 3
"""Names in an error."""


def need(judge: str, modules: Iterable[str]) -> None:
    """Raise UserError where one of the packages isn't installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"judge={judge}: needs {', '.join(missing)}; pip install 'mmdit-jax[judges]'")


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws no progress bars in here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def choose_device(judge: str, asked: str | None) -> Any:
    """A torch device: the one asked for, else a GPU where there is one.

    Products on it are float32 throughout, without TF32: bfloat16 resolves a score of 20 to 0.125, and a tie is a lead
    of 0.08.

    Raises:
        UserError: torch knows or sees no such device.
    """
    import torch

    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={asked}: {str(error).splitlines()[0]}; expected cpu, cuda or cuda:N") from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def fingerprint(version: str, files: Sequence[Path]) -> str:
    """Hash of files' contents, in their order, and of what our code makes of them; 16 hexadecimal digits."""
    digest = hashlib.sha256(version.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def one_file(judge: str, given: str, expected: str) -> tuple[Path, Path]:
    """A torch file that was named, or the only one of a folder; and its folder.

    Raises:
        UserError: there is none, or there are several.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path, path.parent
    if not path.is_dir():
        raise UserError(f"{judge}={given}: no such folder; expected {expected} in it")
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        what = f"{', '.join(file.name for file in files)}: name one of them" if files else f"expected {expected} in it"
        raise UserError(f"{judge}={given}: {what}")
    return files[0], path


def load_tensors(judge: str, path: Path) -> dict[str, Any]:
    """Tensors of a torch file by name, on the CPU, mapped where the format allows it; nothing in the file is executed.

    Raises:
        UserError: no such file of torch's, or one that holds something else.
    """
    from pickle import UnpicklingError

    import torch

    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{judge}={path}: torch can't read it ({str(error).splitlines()[0][:120]})") from None
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if not isinstance(found, Mapping) or not all(isinstance(item, torch.Tensor) for item in found.values()):
        raise UserError(f"{judge}={path}: expected a state dict, of tensors alone")
    return dict(found)


def check_names(
    judge: str, path: Path, expected: Mapping[str, Sequence[int]], found: Mapping[str, Any], unused: Sequence[str] = ()
) -> None:
    """Raise UserError where tensors are missing, unknown or misshapen, naming the first of them.

    Args:
        judge, path: for the line.
        expected: shapes by name.
        found: tensors by name.
        unused: beginnings of names that may be there, and are of no use.
    """
    shapes = {name: tuple(item.shape) for name, item in found.items() if not name.startswith(tuple(unused))}
    unknown, missing, misshapen = compare({name: tuple(shape) for name, shape in expected.items()}, shapes)
    if wrong := [*(f"{name} is missing" for name in missing), *(f"{name} is unknown" for name in unknown), *misshapen]:
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise UserError(f"{judge}={path}: another model's file? {'; '.join(wrong[:_TOLD])}{more}")


def check_vocabulary(judge: str, path: Path, found: int, known: int, spare: int = 0) -> None:
    """Raise UserError where a tokenizer has not the tokens that the network knows, of which it may lack ``spare``."""
    if not known - spare <= found <= known:
        raise UserError(f"{judge}={path}: {found} tokens, and the network knows {known}; another model's?")
