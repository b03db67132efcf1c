"""Seeds of a study beside each other: its runs, and those in its folder that differ from one of them by seed alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.places import CONFIG, RESULT, Places, read_result
from mmdit_jax.config import Run, Study
from mmdit_jax.errors import UserError
from mmdit_jax.seed_names import seed_names


def with_seeds(study: Study, places: Places) -> list[Run]:
    """The study's runs, and beside each the finished ones in its folder that are it with another seed, by seed.

    So the same runs come in the same order whether they are asked for by the study or by it with ``--set seed=K``. A
    run that is another of the list but for its name is not added.
    """
    found: dict[str, list[Run]] = {run.name: [run] for run in study.runs}
    known = {run.run_id for run in study.runs}
    kinds = {replace(run, name="-") for run in study.runs}
    for path in sorted(places.study_dir.glob(f"*/{CONFIG}")):
        folder = path.parent
        if folder.name in known or not (folder / RESULT).exists():
            continue
        told = _told(path, found)
        if told is not None and told.run_id == folder.name and (kind := replace(told, name="-")) not in kinds:
            found[told.name].append(told)
            kinds.add(kind)
    return [run for group in found.values() for run in sorted(group, key=lambda run: run.seed)]


def _told(path: Path, groups: dict[str, list[Run]]) -> Run | None:
    """The run of the name and seed in a config.json, all else as in the study; None where that has no such name."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        config = json.loads(path.read_text())["config"]
        return replace(groups[config["name"]][0], seed=config["seed"])
    return None


def finished_of(runs: Sequence[Run], places: Places) -> list[tuple[Run, dict[str, Any]]]:
    """Those of ``runs`` that are finished, and their results, which are named as ``unique_names``."""
    results = [read_result(places.run_dir(run)) for run in runs]
    named = zip(runs, unique_names(runs), results, strict=True)
    return [(run, {**result, "name": name}) for run, name, result in named if result is not None]


def unique_names(runs: Sequence[Run]) -> list[str]:
    """What tables call the runs: of one name the one of least seed has it, the others are ``NAME seed=K``."""
    return seed_names([(run.name, run.seed) for run in runs])


def has_seeds(study: Study) -> bool:
    """Whether two of the study's own runs differ by seed alone: with ``--set seed=K`` they would be the same."""
    return len({replace(run, name="-", seed=0) for run in study.runs}) < len(study.runs)
