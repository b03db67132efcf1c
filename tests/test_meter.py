"""What events.jsonl says of training, however often it stops to validate."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from launch.places import Places
from launch.studies import load_study
from launch.study import status_row
from mmdit_jax.config import Run
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training import loop, member
from mmdit_jax.training.clean import sides
from mmdit_jax.training.events import EventLog, read_events
from mmdit_jax.training.meter import SPEED, InFlight, Meter
from mmdit_jax.training.peak import (
    AHEAD,
    Peak,
    matmul_flops_per_second,
    measured_peak,
    product_size,
    seconds_a_call,
    timings,
)
from mmdit_jax.training.progress import Progress

UNKNOWN = Peak("cpu", None, 1e12, 1024, "float32")


def values(step: int) -> dict[str, np.ndarray]:
    """Metrics of a step whose loss is its number."""
    loss = np.float32(step)
    return {"loss": loss, "grad_norm": loss, "bin_loss": np.array([loss, 0.0]), "bin_count": np.array([2.0, 0.0])}


@pytest.mark.parametrize("validate_every", [1, 3, 10, 100])
def test_every_loss_is_told_and_no_step_after_a_pause_is_timed(
    tmp_path: Path, tiny_study: Path, capsys, validate_every
):
    run = replace(load_study(str(tiny_study)).runs[0], steps=25, validate_every=validate_every)
    places = Places(tmp_path, "tiny", tmp_path)
    folder = places.run_dir(run)
    folder.mkdir(parents=True)
    events = EventLog(folder)
    meter, progress = Meter(run, events, None, UNKNOWN), Progress("rf", run.steps)
    for step in range(1, run.steps + 1):
        told = meter.read(step, (32, 32), values(step))
        assert (told is not None) == (step in (10, 20, 25))
        if told:
            progress.show(step, [told])
        if step % validate_every == 0:
            meter.pause()
    found = [event for event in read_events(folder) if event["event"] == "train"]
    assert [event["step"] for event in found] == [10, 20, 25]
    assert [event["loss"] for event in found] == [5.5, 15.5, 23.0]  # of steps 1 to 10, 11 to 20, 21 to 25
    assert [event["loss_by_bin"] for event in found] == [[5.5, None], [15.5, None], [23.0, None]]
    timed = [event["images_per_second"] is not None for event in found]
    assert timed == [event["ceiling_share"] is not None for event in found] == [validate_every > 1] * 3
    assert all(event["mfu"] is None and event["mfu_6nd"] is None for event in found)  # there is no data sheet
    line = capsys.readouterr().err
    assert "step 25/25  loss 23.0000" in line and ("images/s" in line) == (validate_every > 1) and "MFU" not in line
    events.write("train", step=25, loss=1.0, images_per_second=None)
    row = status_row(run, places)
    assert row["loss"] == 1.0 and row["images_per_second"] == found[-1]["images_per_second"]
    events.close()


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_mfu_by_hand(tmp_path: Path, tiny_study: Path, capsys) -> None:
    """Two shapes of a model small enough to count with a pencil, at known seconds a step, on a chip of known peak.

    Width 32, patch 8, MLP 4 x, one image token for each 8 x 8 pixels, and the text tokens of "words" and "tower".
    """
    run = replace(load_study(str(tiny_study)).runs[0], steps=10)
    d, context, pooled, text, mlp = 32, run.model.context_dim, run.model.pooled_dim, 16, 4

    def forward(image: int) -> int:
        """Multiplications of an image's forward pass, a matrix at a time; block 2 of 2 leaves out the text's end."""
        linear = d * 3 * d + d * d + d * mlp * d + mlp * d * d
        first = (image + text) * linear + 2 * (image + text) ** 2 * d + 2 * d * 6 * d
        last = image * linear + text * d * 3 * d + 2 * image * (image + text) * d + d * 6 * d + d * 2 * d
        ends = image * 8 * 8 * 3 * d + text * context * d + (256 + pooled) * d + 2 * d * d
        return first + last + ends + d * 2 * d + image * d * 8 * 8 * 3

    square, wide = (3 * 2 * forward(image) * run.batch for image in (16, 18))  # 32 x 32 and 24 x 48 pixels
    assert square == run.train_flops(1)
    square_6nd, wide_6nd = (6 * run.model.num_params() * (image + text) * run.batch for image in (16, 18))
    clock, events = Clock(), EventLog(tmp_path)
    meter = Meter(run, events, None, Peak("a chip", 4e9, 1e9, 8192, "bfloat16"), clock)
    told = None
    for step in range(1, 11):  # the first is not timed; 9 follow, five of them wide
        clock.now += 0.25 if step % 2 else 0.5
        told = meter.read(step, (32, 32) if step % 2 else (24, 48), values(step))
    events.close()
    (event,) = [item for item in read_events(tmp_path) if item["event"] == "train"]
    seconds = 4 * 0.25 + 5 * 0.5
    rate, rate_6nd = (4 * square + 5 * wide) / seconds, (4 * square_6nd + 5 * wide_6nd) / seconds
    expected = {
        "images_per_second": 9 * run.batch / seconds,
        "flops_per_second": rate,
        "mfu": rate / 4e9,
        "mfu_6nd": rate_6nd / 4e9,
        "ceiling_share": rate / 1e9,
    }
    assert {name: event[name] for name in SPEED} == pytest.approx(expected, rel=1e-12)
    assert told == pytest.approx({"loss": 5.5, "seconds_left": 0.0, **expected})
    Progress("rf", 10).show(10, [told, told])
    line = capsys.readouterr().err
    assert f"  MFU {200 * rate / 4e9:.0f} %  {200 * rate / 1e9:.0f} % of ceiling  0:00 left" in line


class Later:
    """A number that the device has at second ``ready``: who looks at it waits until then."""

    def __init__(self, clock: Clock, ready: float, value: np.ndarray) -> None:
        self._clock, self._ready, self._value = clock, ready, value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._clock.now = max(self._clock.now, self._ready)
        return np.asarray(self._value)


class Simulated:
    """A program of one run on a device that takes 1 s for a square batch, 0.5 s for a wide one, one after the other.

    The host waits 0.1 s for a batch, and 60 s for the compiler where the batch's shape is new.
    """

    def __init__(self, run: Run, clock: Clock, wide: range) -> None:
        self.runs, self.mesh, self._clock, self._wide = (run,), make_mesh(), clock, wide
        self._free, self._compiled, self._step = 0.0, set[tuple[int, ...]](), 0

    def batches(self, data: Any, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(1, self.runs[0].steps + 1):
            self._clock.now += 0.1
            yield {"image": np.zeros((8, *((24, 48) if step in self._wide else (32, 32)), 3), np.uint8)}

    def step(self, state: Any, batch: dict[str, np.ndarray], shift: int = 0) -> tuple[Any, dict[str, Later]]:
        shape = batch["image"].shape
        self._clock.now += 0.0 if shape in self._compiled else 60.0
        self._compiled.add(shape)
        self._step += 1
        self._free = max(self._free, self._clock.now) + (0.5 if self._step in self._wide else 1.0)
        return state, {name: Later(self._clock, self._free, value) for name, value in values(self._step).items()}

    def metrics_of(self, index: int, found: Any) -> Any:
        return found

    def ema_of(self, index: int, state: Any) -> Any:
        return state

    def state_of(self, index: int, state: Any) -> Any:
        return state


def test_steps_in_flight_when_another_bucket_compiles_have_their_own_times(
    tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop itself, of 30 steps; from the 15th on batches are wide. Only steps 1 and 15 are not timed."""
    run, clock, order = load_study(str(tiny_study)).runs[0], Clock(), []
    run = replace(run, steps=30, validate_every=30, hardware=replace(run.hardware, checkpoint_every=30))
    monkeypatch.setattr(member, "Meter", functools.partial(Meter, clock=clock))
    monkeypatch.setattr(loop, "measured_peak", lambda dtype: order.append("peak") or UNKNOWN)
    monkeypatch.setattr(loop, "_first_state", lambda *_: order.append("state") or (0, {"weights": np.zeros(2)}))
    monkeypatch.setattr(member, "validation_loss", lambda *_, **__: np.zeros(8))
    data: Any = SimpleNamespace(held_out=())
    loop._train(Simulated(run, clock, range(15, 31)), [tmp_path], data, "tiny", loop.Conduct(quiet=True))  # type: ignore[arg-type]
    found = [event for event in read_events(tmp_path) if event["event"] == "train"]
    assert [event["step"] for event in found] == [10, 20, 30]
    timed = [9 / 9, (4 + 5) / (4 * 1 + 5 * 0.5), 10 / 5]  # steps a second: 2 to 10; 11 to 14 and 16 to 20; 21 to 30
    assert [event["images_per_second"] for event in found] == pytest.approx([8 * rate for rate in timed], rel=1e-9)
    square, wide = run.step_flops(32, 32)[0], run.step_flops(24, 48)[0]
    flops = [square, (4 * square + 5 * wide) / 6.5, wide / 0.5]
    assert [event["flops_per_second"] for event in found] == pytest.approx(flops, rel=1e-9)
    assert order == ["peak", "state"]  # the ceiling is measured while the memory is free


def test_the_ceiling_is_a_median_after_warming_up() -> None:
    clock, seconds = Clock(), iter([60.0] + [3.0] * 4 + [1.0, 1.0, 50.0, 1.0, 1.0, 0.1, 2.0, 1.0] * 2)

    def call() -> np.ndarray:
        clock.now += next(seconds)
        return np.zeros(1)

    # 60 s of compilation, four warm ones, then pairs: (1, 1), (50, 1), (1, 0.1), (2, 1), (1, 1)
    assert seconds_a_call(call, calls=2, warm=5, samples=5, clock=clock) == 1.0


def test_few_results_are_alive_and_each_is_waited_for() -> None:
    class Result:
        def block_until_ready(self) -> Result:
            waited.add(self)
            return self

    alive, waited, most, made = weakref.WeakSet[Result](), weakref.WeakSet[Result](), 0, 0

    def call() -> Result:
        nonlocal most, made
        result = Result()
        alive.add(result)
        most, made = max(most, len(alive)), made + 1
        return result

    def clock() -> float:
        assert set(alive) <= set(waited), "a sample ends before its calls"
        return 0.0

    assert timings(call, calls=10, warm=30, samples=3, clock=clock) == [0.0] * 3
    assert (most, made, len(alive)) == (AHEAD, 30 + 3 * 10, 0)


def test_the_ceiling_leaves_nothing_in_memory() -> None:
    def large() -> int:
        return sum(array.shape == (product_size(),) * 2 for array in jax.live_arrays())

    before = large()
    assert matmul_flops_per_second.__wrapped__("float32") > 1e8
    assert large() == before


@pytest.mark.parametrize(("kind", "sheet"), [("NVIDIA H100 80GB HBM3", 989.4e12), ("Abacus 9000", None)])
def test_the_data_sheet_is_the_devices_or_none(monkeypatch, kind: str, sheet: float | None) -> None:
    class Device:
        device_kind = kind

    measured_peak("float32")  # the product is timed on what is really there
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    found = measured_peak("float32")
    assert found.datasheet_flops_per_second == (None if sheet is None else 4 * sheet)
    assert (found.device_kind, found.ceiling_size, found.ceiling_dtype) == (kind, 1024, "float32")
    assert found.ceiling_flops_per_second > 1e8


def test_sides_go_with_their_step() -> None:
    stacked = {"latents": {"mean": np.zeros((2, 3, 4, 6, 16))}}  # of two runs in one program
    assert sides({"image": np.zeros((3, 8, 4, 3))}) == (8, 4) and sides(stacked) == (4, 6)
    queue = InFlight()
    for step, shape in enumerate([(1, 2), (3, 4), (5, 6)]):
        queue.add(step, shape, {})
    assert [(step, shape) for step, shape, _ in queue.take()] == [(0, (1, 2))]
    assert [(step, shape) for step, shape, _ in queue.take(everything=True)] == [(1, (3, 4)), (2, (5, 6))]
