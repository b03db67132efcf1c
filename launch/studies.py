"""Find a study by name or path, and load it."""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import experiments
from mmdit_jax import config
from mmdit_jax.config import Run, Study
from mmdit_jax.config_values import overridden
from mmdit_jax.errors import UserError, nearest
from mmdit_jax.models import MMDiTConfig

CONFIGS = {
    item.__name__: item
    for item in (
        config.Run,
        config.Study,
        config.DataConfig,
        config.OptimizerConfig,
        config.EvaluationConfig,
        config.HardwareConfig,
        MMDiTConfig,
    )
}


def study_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(item.name for item in pkgutil.iter_modules(experiments.__path__))


def load_study(name_or_path: str, overrides: list[str] | None = None) -> Study:
    """The study of this name in experiments/, or of this Python file; ``overrides`` are ``field=value`` for every run.

    Raises:
        UserError: no such study, no ``study()`` in it, an unknown field, or a value that a run refuses.
    """
    module = _import(name_or_path)
    make = vars(module).get("study")
    if not callable(make):
        raise UserError(f"study={name_or_path!r}: the file defines no study() -> Study")
    try:
        study = make()
    except TypeError as error:
        raise UserError(_explain(error, name_or_path)) from error
    if not isinstance(study, Study):
        raise UserError(
            f"study={name_or_path!r}: study() returned {type(study).__name__}, expected mmdit_jax.config.Study"
        )
    return Study(study.name, tuple(_overridden(study, overrides or ())))


def find_run(study: Study, key: str, overrides: Sequence[str]) -> Run:
    """The run of this name or id, which may be that with ``overrides``; they are left for the caller to set.

    So they are asked of this run alone: others of the study may be such that they refuse them.

    Raises:
        UserError: not in the study.
    """
    for run in study.runs:
        if key in (run.name, run.run_id):
            return run
    for run in study.runs:
        with contextlib.suppress(UserError):
            if any(key == trained.run_id for trained in trainings(run, overrides)):
                return run
    return study.find(key)  # which isn't there: says what is nearest


def trainings(run: Run, overrides: Sequence[str]) -> list[Run]:
    """``run`` as it may have been trained, where it is to be evaluated with ``overrides``: with all of them, as the
    whole study was run; then without the last of ``evaluation``, the last two, and at last without any of these."""
    scored = [item.strip().startswith("evaluation.") for item in overrides]
    found = []
    for kept in range(sum(scored), -1, -1):
        given = iter(range(sum(scored)))
        items = [item for item, of in zip(overrides, scored, strict=True) if not of or next(given) < kept]
        found.append(overridden(run, items))
    return found


def _overridden(study: Study, overrides: Sequence[str]) -> list[Run]:
    """Every run with ``overrides``. Raises UserError where one refuses; if others would not, says which it is."""
    taken: list[Run] = []
    refused: list[tuple[str, UserError]] = []
    for run in study.runs:
        try:
            taken.append(overridden(run, overrides))
        except UserError as error:
            refused.append((run.name, error))
    if not refused:
        return taken
    name, why = refused[0]
    if not taken:
        raise why
    takers = f"{len(taken)} of {len(study.runs)} runs would take it"
    raise UserError(f"{why} (so says {name!r}; {takers}: a study file of your own can set it in these)") from why


def _import(name_or_path: str) -> ModuleType:
    path = Path(name_or_path)
    if path.suffix != ".py":
        names = study_names()
        if name_or_path not in names:
            raise UserError(
                f"study={name_or_path!r}: unknown; did you mean {nearest(name_or_path, names)!r}? "
                f"(one of: {', '.join(names)}; or the path of a .py file)"
            )
        return importlib.import_module(f"experiments.{name_or_path}")
    if not path.is_file():
        raise UserError(f"study={name_or_path!r}: no such file")
    spec = importlib.util.spec_from_file_location(f"study_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"study={name_or_path!r}: line {error.lineno}: {error.msg}") from error
    except TypeError as error:
        raise UserError(_explain(error, name_or_path)) from error
    except ImportError as error:
        raise UserError(f"study={name_or_path!r}: {error}") from error
    return module


def _explain(error: TypeError, where: str) -> str:
    """A TypeError of a study file in one line; an unknown field with the nearest one."""
    line = traceback.extract_tb(error.__traceback__)[-1].lineno
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).name == Path(where).with_suffix(".py").name:
            line = frame.lineno
            break
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if found and found.group(1) in CONFIGS:
        fields = list(CONFIGS[found.group(1)].__dataclass_fields__)
        name = found.group(2)
        close = nearest(name, fields)
        return f"study={where!r} line {line}: {found.group(1)} has no field {name!r}; did you mean {close!r}?"
    return f"study={where!r} line {line}: {error}"
