"""One run, from nothing or from where it was, to its result.json."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from launch.compiled import keep_compiled_programs
from launch.digest import digest, on_host
from launch.drawing import check_drawing, drawing
from launch.hold import hold
from launch.places import RESULT, STACKS, Places, read_result
from launch.settings import score_run
from mmdit_jax.config import Run
from mmdit_jax.copies import push_all
from mmdit_jax.diffusion import formulation, learned_name
from mmdit_jax.errors import Diverged, Preempted, UserError
from mmdit_jax.evaluation.evaluate import evaluate, nothing_drawn
from mmdit_jax.evaluation.removal import draw_without
from mmdit_jax.files import write_json
from mmdit_jax.host import sigterm_leaves
from mmdit_jax.pauses import at_pauses, pause
from mmdit_jax.processes import exchange, from_first, is_first, joined, preemption, together
from mmdit_jax.training.best import restore_best, without_memory
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.data import LatentData, TrainingData, flops_beside_square, training_data
from mmdit_jax.training.events import EventLog, validations
from mmdit_jax.training.loop import Conduct, train, train_together
from mmdit_jax.training.member import past
from mmdit_jax.training.program import ema_on_devices, mesh_of
from mmdit_jax.training.state import TrainState, abstract_state
from mmdit_jax.watchdog import Watchdog


@dataclass(frozen=True)
class Handling:
    """How a run is handled: nothing of it changes a result, but for ``rewinds``."""

    quiet: bool = False
    """No progress lines."""
    rewinds: int = 0
    """See ``Conduct``."""
    hang_seconds: float = 0.0
    """Without a step for so long (four times as long where it compiles, saves, validates), a process writes down its
    stacks and ends; 0: never."""
    lock_seconds: float = 0.0
    """How long to wait where another attempt is at the run."""
    began: float | None = None
    """When the attempt began, in seconds since 1970; None: now."""


def execute(run: Run, places: Places, handling: Handling | None = None) -> dict[str, Any]:
    """Train and evaluate ``run`` and return its result; a finished run is read, not repeated.

    All processes of the run call this; process 0 writes.

    Raises:
        Held: another attempt is at this run.
        UserError: bad input.
        Diverged: it diverged, now or in an earlier attempt, and may not be rewound (any more).
        Preempted: SIGTERM came, and everything is saved.
    """
    handling = handling or Handling()
    if handling.rewinds and run.evaluation.at == "best":
        raise UserError(
            f"rewinds={handling.rewinds}: expected 0 with evaluation.at='best', whose best step may be rewound"
        )
    run_dir = places.run_dir(run)
    done = from_first("result", lambda: read_result(run_dir))
    if done is not None:
        return done
    with _attempt([run], places, handling) as conduct:
        done = from_first("result", lambda: read_result(run_dir))
        if done is not None:  # by an attempt that was waited for
            return done
        before = past(run_dir)
        if before.diverged is not None and before.count >= handling.rewinds:
            raise Diverged(before.diverged[1])
        started = time.perf_counter()
        with _before_steps(run):  # and, between it and the first step, what is restored and compiled
            data = _data(run, places)
            state = without_memory(train(run, run_dir, data, project=places.study, conduct=conduct))
        with _after_steps(run, run_dir, conduct.watchdog):
            return _finish(run, places, data, state, started, conduct.watchdog)


def _finish(
    run: Run, places: Places, data: TrainingData, state: TrainState, started: float, watchdog: Watchdog
) -> dict[str, Any]:
    """Evaluate, and write the result."""
    run_dir = places.run_dir(run)
    trained = time.perf_counter()
    told: list[dict[str, Any]] = from_first("validation losses", lambda: validations(run_dir))
    curve = [{"step": v["step"], "loss": v["loss"], "levels": v["levels"]} for v in told]
    result = {**describe(run), "val_loss": curve[-1]["loss"], "val_loss_levels": curve[-1]["levels"], "curve": curve}
    rewound = past(run_dir)
    if rewound.count:
        result |= {"rewinds": rewound.count, "rewound": [list(item) for item in rewound.shifts]}
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
        scores["learned_formulation"] = learned_name(density, jax.tree.map(on_host, state.loss_by_time))
    result |= {"params_sha256": digest(state.params), "ema_sha256": digest(state.ema), **scores}

    def write() -> None:
        push_all(run_dir)
        write_json(run_dir / RESULT, result)
        events = EventLog(run_dir)
        ended = time.perf_counter()
        events.write("done", train_seconds=trained - started, evaluate_seconds=ended - trained, durable=True)
        events.close()

    pause()
    watchdog.rest()  # uploads take what they take
    from_first("result", write, seconds=3600.0)  # the others wait: none may leave before it is written
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


def train_group(runs: Sequence[Run], places: Places, handling: Handling | None = None) -> None:
    """Train runs of one ``program_key`` side by side to their last step; ``execute`` evaluates each afterwards.

    A run that diverges has the event, which ``execute`` raises again. Each is given its share of the time.

    Raises:
        Apart: they can't start at the same step; nothing was trained.
        Held, UserError, Preempted: as ``execute``.
    """
    folders = [places.run_dir(run) for run in runs]
    with _attempt(runs, places, handling or Handling()) as conduct:
        started = time.perf_counter()
        with _before_steps(runs[0]):
            data = _data(runs[0], places)
        train_together(runs, folders, data, project=places.study, conduct=conduct)
        share = (time.perf_counter() - started) / len(runs)
        for folder in folders:
            events = EventLog(folder)
            events.write("trained", train_seconds=share, durable=True)
            events.close()


@contextlib.contextmanager
def _attempt(runs: Sequence[Run], places: Places, handling: Handling) -> Iterator[Conduct]:
    """Hold the runs, with a watchdog beside them."""
    began = time.time() if handling.began is None else handling.began
    with contextlib.ExitStack() as held:
        numbers = [
            held.enter_context(hold(run, places, began=began, lock_seconds=handling.lock_seconds)) for run in runs
        ]
        keep_compiled_programs(places.root)
        name = f"attempt{numbers[0]}-process{jax.process_index()}.txt"
        watchdog = Watchdog(handling.hang_seconds, places.run_dir(runs[0]) / STACKS / name)
        held.callback(watchdog.close)
        yield Conduct(handling.quiet, handling.rewinds, watchdog)


def _before_steps(run: Run) -> contextlib.AbstractContextManager[None]:
    """SIGTERM ends a process alone at once; of several, JAX notes it (a handler of ours would undo its own), and all
    end together after the first step."""
    return contextlib.nullcontext() if joined() else sigterm_leaves(f"{run.name} before training")


@contextlib.contextmanager
def _after_steps(run: Run, run_dir: Path, watchdog: Watchdog) -> Iterator[None]:
    """Every piece that is drawn is a sign of life; SIGTERM ends a process alone at once, several at the same piece."""
    what = f"{run.name} after training"
    if not joined():
        with sigterm_leaves(what), at_pauses(lambda: watchdog.beat(slow=True)):
            watchdog.beat(slow=True)
            yield
        return
    numbers = itertools.count(run.steps + 1)
    with preemption(run.steps) as terminated:

        def act() -> None:
            watchdog.beat(slow=True)
            if terminated(next(numbers)):
                events = EventLog(run_dir, enabled=is_first())
                events.write("preempted", step=run.steps, durable=True)
                events.close()
                raise Preempted(f"{what}: stopped by SIGTERM, nothing is lost; run again to go on")

        with at_pauses(act):
            act()
            yield


def _data(run: Run, places: Places) -> TrainingData:
    """The run's data, in every process, and a word of it if it can't draw."""
    data = together("data", lambda: training_data(run, places.data))
    draws = exchange("drawing", together("autoencoder", lambda: check_drawing(run, data, places.vae)))
    if len(set(draws)) > 1:
        without = ", ".join(str(number) for number, found in enumerate(draws) if not found)
        raise UserError(
            f"vae={places.vae}: no autoencoder on the host of process {without}, but on others; give one that all have "
            "by --vae FOLDER, or --vae none"
        )
    return data


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
        "text_encoders": "+".join(run.data.text_encoders),
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
