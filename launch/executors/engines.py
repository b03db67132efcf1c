"""Which engines a study was given to: noted in its folder, so that status and cancel find them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.executors.job import FOLDER, Job, Live
from launch.executors.kubernetes_engine import KubernetesEngine
from launch.executors.kubernetes_options import Kubernetes
from launch.executors.local import Local, LocalEngine
from launch.executors.slurm import Slurm, SlurmEngine
from mmdit_jax.copies import ENGINES
from mmdit_jax.errors import unknown
from mmdit_jax.files import write_json
from mmdit_jax.remote import location

NAMES = ("local", "slurm", "k8s")


class Engine(Protocol):
    """What starts runs."""

    name: str

    def render(self, job: Job) -> str:
        """What would be submitted: a function of the job, and of the engine's options."""

    def check(self, job: Job) -> None:
        """Refuse what would never start; asked before anything is written.

        Raises:
          UserError: the engine can't have it, or is not here.
        """

    def submit(self, job: Job) -> str:
        """Submit what ``check`` let pass, and return the engine's name of it.

        Raises:
          UserError: the engine refuses.
        """

    def found_by(self) -> dict[str, Any]:
        """What finds it again, from any host; no secrets."""

    def live(self) -> Mapping[str, Live]:
        """The study's runs that it has in its hands, by run id.

        Raises:
          UserError: it can't be asked.
        """

    def states(self) -> Mapping[str, Live]:
        """The same, and runs that ended there, of which it remembers why; asked once, as ``live``."""

    def cancel(self, runs: Sequence[str]) -> list[str]:
        """End these runs; returns those that were in its hands."""


def known_engines(study_dir: Path) -> list[Engine]:
    """Those that ``note_engine`` was told of; one of Kubernetes for each namespace of each context."""
    return [_engine(name, study_dir, told) for name, all_told in _noted(study_dir).items() for told in all_told]


def note_engine(study_dir: Path, engine: Engine) -> None:
    """From here on the study is asked for there, too."""
    noted, told = _noted(study_dir), engine.found_by()
    before = noted.get(engine.name, [])
    if told not in before:
        write_json(study_dir / FOLDER / ENGINES, {**noted, engine.name: [*before, told]})


def _noted(study_dir: Path) -> dict[str, list[dict[str, Any]]]:
    path = study_dir / FOLDER / ENGINES
    if not path.exists():
        return {}
    noted: dict[str, Any] = json.loads(path.read_text())
    # Once there was one of each name.
    return {name: [told] if isinstance(told, dict) else told for name, told in noted.items()}


def _engine(name: str, study_dir: Path, told: dict[str, Any]) -> Engine:
    if name == "local":
        return LocalEngine(study_dir, Local())
    if name == "slurm":
        return SlurmEngine(study_dir, Slurm())
    if name == "k8s":
        known = {key: told[key] for key in ("namespace", "context")}
        # What is asked for carries no image; one is needed to be one.
        options = Kubernetes(
            image="none", volumes=tuple((source, folder) for source, folder in told["volumes"]), **known
        )
        return KubernetesEngine(location(study_dir), options)
    unknown("executor", name, NAMES)
