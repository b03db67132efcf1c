"""One run, from nothing or from where it was, to its result.json."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from launch.compiled import keep_compiled_programs
from launch.drawing import check_drawing, drawing
from launch.settings import score_run
from mmdit_jax.config import Run
from mmdit_jax.config_values import to_dict
from mmdit_jax.data import pipeline
from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.diffusion import formulation, learned_name
from mmdit_jax.errors import Diverged, UserError
from mmdit_jax.evaluation.evaluate import evaluate, nothing_drawn
from mmdit_jax.evaluation.removal import draw_without
from mmdit_jax.files import write_json
from mmdit_jax.training.best import FOLDER as BEST
from mmdit_jax.training.best import restore_best, without_memory
from mmdit_jax.training.checkpoint import FOLDER as CHECKPOINTS
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.data import LatentData, TrainingData, flops_beside_square, training_data
from mmdit_jax.training.events import EventLog, read_events, validations
from mmdit_jax.training.loop import train, train_together
from mmdit_jax.training.program import ema_on_devices, mesh_of
from mmdit_jax.training.state import TrainState, abstract_state
from mmdit_jax.versions import versions

log = logging.getLogger(__name__)

RESULT = "result.json"
CONFIG = "config.json"
FOLDERS = (CHECKPOINTS, BEST)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "mmdit-jax")


@dataclass(frozen=True)
class Places:
    """Where things lie: ``root/<study>/<run_id>/`` and the data sets."""

    root: Path
    study: str
    data: Path
    vae: str | None = None
    """Autoencoder of an encoded data set, ``none`` to draw nothing; None: where it lay when the set was made."""

    @property
    def study_dir(self) -> Path:
        return self.root / self.study

    def run_dir(self, run: Run) -> Path:
        return self.study_dir / run.run_id


def execute(run: Run, places: Places, *, quiet: bool = False) -> dict[str, Any]:
    """Train and evaluate ``run`` and return its result; a finished run is read, not repeated.

    Raises:
        UserError: bad input, or another process is at this run.
        Diverged: it diverged, now or in an earlier attempt.
        Preempted: SIGTERM came, and everything is saved.
    """
    run_dir = places.run_dir(run)
    done = read_result(run_dir)
    if done is not None:
        return done
    with _prepared(run, places):
        for event in read_events(run_dir):
            if event["event"] == "diverged":
                raise Diverged(event["message"])
        started = time.perf_counter()
        data = training_data(run, places.data)
        check_drawing(run, data, places.vae)
        state = without_memory(train(run, run_dir, data, project=places.study, quiet=quiet))
        trained = time.perf_counter()
        curve = [{"step": v["step"], "loss": v["loss"], "levels": v["levels"]} for v in validations(run_dir)]
        result = {
            **describe(run),
            "val_loss": curve[-1]["loss"],
            "val_loss_levels": curve[-1]["levels"],
            "curve": curve,
        }
        if isinstance(data, LatentData):
            result["flops_beside_square"] = flops_beside_square(run, data)
        if run.evaluation.at == "best":
            step, state = restore_best(run_dir, _abstract(run))
            (loss,) = [point["loss"] for point in curve if point["step"] == step]
            result |= {"best_step": step, "best_val_loss": loss}
        state = replace(state, ema=ema_on_devices(run, state, mesh_of(run)))
        scores = _scores(run, state, run_dir, data, places)
        density = formulation(run.formulation)
        if density.adaptive:
            scores["learned_formulation"] = learned_name(density, jax.tree.map(_on_host, state.loss_by_time))
        result |= {"params_sha256": digest(state.params), "ema_sha256": digest(state.ema), **scores}
        if jax.process_index() == 0:
            write_json(run_dir / RESULT, result)
            events = EventLog(run_dir)
            ended = time.perf_counter()
            events.write("done", train_seconds=trained - started, evaluate_seconds=ended - trained, durable=True)
            events.close()
        return result


def _scores(run: Run, state: TrainState, run_dir: Path, data: TrainingData, places: Places) -> dict[str, Any]:
    """Draw with the run's weights, and score what was drawn."""
    asked = run.evaluation
    found = drawing(run, data, places.vae)
    if found is None:
        empty: dict[str, Any] = {name: [] for name in ("without", "settings") if vars(asked)[name]}
        return {**nothing_drawn(), **empty}
    captions, latent = found.captions, found.latent
    scores = evaluate(run, state.ema, run_dir / "samples", captions, latent=latent)
    if asked.without:
        scores["without"] = draw_without(run, state.ema, run_dir, captions, latent)
    if asked.settings:
        weights = {"ema": state.ema, "raw": state.params}
        scores["settings"] = score_run(run, weights, run_dir, places.data, latent, places.vae)
    return scores


def train_group(runs: Sequence[Run], places: Places, *, quiet: bool = False) -> None:
    """Train runs of one ``program_key`` side by side to their last step; ``execute`` evaluates each afterwards.

    A run that diverges has the event, which ``execute`` raises again. Each is given its share of the time.

    Raises:
        Apart: they can't start at the same step; nothing was trained.
        UserError, Preempted: as ``execute``.
    """
    folders = [places.run_dir(run) for run in runs]
    with contextlib.ExitStack() as held:
        for run in runs:
            held.enter_context(_prepared(run, places))
        started = time.perf_counter()
        data = training_data(runs[0], places.data)
        check_drawing(runs[0], data, places.vae)
        train_together(runs, folders, data, project=places.study, quiet=quiet)
        share = (time.perf_counter() - started) / len(runs)
        for folder in folders:
            events = EventLog(folder)
            events.write("trained", train_seconds=share, durable=True)
            events.close()


@contextlib.contextmanager
def _prepared(run: Run, places: Places) -> Iterator[None]:
    """Hold the run's directory, with its config in it; of several processes at one run, the first does it for all.

    Raises:
        UserError: another process holds it, or its encoded data set is not there or another one than it was begun with.
    """
    run_dir = places.run_dir(run)
    encoded = pipeline.open_encoded(run.data.name, places.data)
    if encoded is not None:
        training_data(run, places.data)  # refuses what does not suit before anything is written
    make_folder(run_dir)
    keep_compiled_programs(places.root)
    main = jax.process_index() == 0
    with _lock(run_dir) if main else contextlib.nullcontext():
        told = {"run_id": run.run_id, "config": to_dict(run), "versions": versions(PACKAGES)}
        if encoded is not None:
            _check_same_data(run_dir, encoded)
            told["data_fingerprint"] = encoded.fingerprint
        if main:
            write_json(run_dir / CONFIG, told)
        yield


def _check_same_data(run_dir: Path, encoded: EncodedSet) -> None:
    """Refuse to go on with another set than the checkpoints were trained on."""
    config = run_dir / CONFIG
    if not config.exists() or not any(path for name in FOLDERS for path in (run_dir / name).glob("[0-9]*")):
        return
    try:
        before = json.loads(config.read_text()).get("data_fingerprint")
    except ValueError:
        return  # cannot be told any more
    if before != encoded.fingerprint:
        raise UserError(
            f"data={encoded.folder}: fingerprint {encoded.fingerprint}, but {run_dir.name} was trained on {before} "
            f"under this name; restore that set, or delete {run_dir} to train anew"
        )


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The run's result, or none where it is not done."""
    path = run_dir / RESULT
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"result={path}: damaged; delete it, and the run is evaluated again") from error
    return result


def describe(run: Run) -> dict[str, Any]:
    """What tables say of a run before it has any result."""
    return {
        "run_id": run.run_id,
        "name": run.name,
        "formulation": run.formulation,
        "architecture": run.model.architecture,
        "parametrization": run.model.parametrization,
        "learning_rate": run.optimizer.learning_rate,
        "width": run.model.width,
        "depth": run.model.depth,
        "dataset": run.data.name,
        "seed": run.seed,
        "params": run.model.num_params(),
        "steps": run.steps,
        "batch": run.batch,
        "images": run.steps * run.batch,
        "train_flops": run.train_flops(),
        "train_flops_6nd": run.train_flops_6nd(),
    }


def restore_ema(run: Run, run_dir: Path) -> Any:
    """The EMA weights of the run's newest checkpoint, or of its best step where it is evaluated there.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if run.evaluation.at == "best":
        return restore_best(run_dir, _abstract(run))[1].ema
    checkpoints = Checkpoints(run_dir, read_only=True)
    try:
        found = checkpoints.restore(_abstract(run))
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"checkpoint={run_dir}: none yet; train the run first")
    return found[1].ema


def _abstract(run: Run) -> TrainState:
    return abstract_state(run.model, run.optimizer, run.steps, mesh_of(run))


def _on_host(leaf: Any) -> np.ndarray:
    """The whole array, wherever its parts are; to be called by every process that has some."""
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(process_allgather(leaf, tiled=True) if elsewhere else jax.device_get(leaf))


def digest(tree: Any) -> str:
    """SHA-256 over names, shapes and bytes of a parameter tree; to be called by every process that has parts of it."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = _on_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def make_folder(folder: Path) -> None:
    """Create ``folder``, or say in one line why it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process of this run may have been first
    except OSError as error:
        raise UserError(f"root={folder}: cannot be written ({error.strerror}); choose another --root") from error


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Hold the run, so that a second process at the same run is told, not mixed in."""
    with (run_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"run={run_dir.name!r}: another process is at it; wait for it, or stop it") from error
        yield


def is_locked(run_dir: Path) -> bool:
    """Whether a live process holds the run."""
    path = run_dir / "lock"
    if not path.exists():
        return False
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
