"""benchmarks/device.py on the CPU: tiny shapes go all the way, a measurement that fails is a row that says so."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import device
from benchmarks.on_device import job as child
from benchmarks.on_device import training
from benchmarks.on_device.batches import TRIES, largest_batch, rung, rungs
from benchmarks.on_device.jobs import Job, jobs
from benchmarks.on_device.rows import COLUMNS, floor, rates, row, table
from mmdit_jax.host import GPU_SHARE, GPU_SHARE_VARIABLE

ABSENT = (
    *("grain", "tensorflow_datasets", "wandb", "transformers", "orbax", "pandas", "scipy", "PIL", "pyarrow"),
    *("matplotlib", "safetensors", "array_record", "tensorstore", "importlib_resources", "tqdm", "torch"),
    "jaxtyping",
)
"""What a machine with an accelerator may lack."""
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def test_tiny_shapes_go_all_the_way_with_jax_flax_optax_numpy_alone(tmp_path: Path) -> None:
    # orbax is flax's own dependency, which flax does not need to import; the block is for all processes started
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK)
    variables = {**ENVIRONMENT, "PYTHONPATH": str(blocked)}
    refused = subprocess.run([sys.executable, "-c", "import pandas"], env=variables, capture_output=True, text=True)
    assert "No module named 'pandas'" in refused.stderr
    out = tmp_path / "out"
    chosen = ["ceilings", "sampling depth 5, 128 px", "training depth 2, 32 px"]
    command = [sys.executable, "-m", "benchmarks.device", "--tiny", "--out", str(out), "--only", *chosen]
    done = subprocess.run(command, env=variables, cwd=device.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "device.json").read_text())
    assert (out / "device.md").read_text() == done.stdout
    drawn, trained = report["rows"]
    for one in (drawn, trained):
        assert "why" not in one, one
        assert 0 < one["fastest_seconds"] <= one["seconds"] <= one["slowest_seconds"]
        assert one["product_share"] == pytest.approx(one["flops_per_second"] / report["rates"]["flops_per_second"])
        assert one["goals"] == []
    _, drawing, training_ = report["answers"]
    assert len(drawing["answer"]["seconds"]) == 3 and len(training_["answer"]["seconds"]) == 5
    tried = {item["batch"]: item["bytes"] for item in training_["answer"]["tried"]}
    assert tried[trained["batch"]] <= 2**26
    # depth 2, heads of 8: 2 tokens of patches a side, 154 of text, by hand
    d, image, text, patch = 16, 4, 154, 64
    per_token = 12 * d * d
    first = (image + text) * per_token + 2 * (image + text) ** 2 * d + 12 * d * d
    last = image * per_token + text * 3 * d * d + 2 * image * (image + text) * d + 8 * d * d
    ends = 2 * image * patch * d + text * 4096 * d + (256 + 2048) * d + 4 * d * d
    assert training_["answer"]["flops"] == 3 * 2 * (first + last + ends) * trained["batch"]


def message(name: str) -> dict[str, Any]:
    return next(job for job in jobs(tiny=True) if job.name == name).message(None)


def test_weights_are_random_where_training_begins_at_zero() -> None:
    from benchmarks.on_device.programs import run_of
    from mmdit_jax.training.program import mesh_of
    from mmdit_jax.training.state import init_state

    run = run_of(message("training depth 2, 32 px"), 1)
    state = init_state(run.model, run.optimizer, run.steps, 0, mesh_of(run))
    woken = training.awake(state)

    def zeros(params: Any) -> set[str]:
        found = jax.tree_util.tree_leaves_with_path(params)
        return {path[-2].key for path, leaf in found if path[-1].key == "kernel" and not np.any(leaf)}

    before = zeros(state.ema)
    assert before == set(training.ZEROS)
    assert zeros(woken.params) == set()


# ---- a measurement that gives nothing ------------------------------------------------------------------------------


def asked(script: str, seconds: float = 30) -> dict[str, Any]:
    return device.ask({}, seconds, dict(os.environ), (sys.executable, "-c", script))


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal SIGSEGV: no word on stderr"),
        ("raise ValueError('no such kernel')", "ended by exit code 1: ValueError: no such kernel"),
        ("print('noise')", "ended by exit code 0: no word on stderr"),
    ],
)
def test_a_process_that_dies_is_a_line(script: str, line: str) -> None:
    assert asked(script)["error"] == line


def test_a_process_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = (
        "import subprocess, sys, time; from pathlib import Path; "
        "started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); "
        f"Path({str(told)!r}).write_text(str(started.pid)); time.sleep(100)"
    )
    assert asked(script, 3)["error"] == "ended after 3 s without an answer"
    deadline = time.monotonic() + 10
    while running(told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore", "out of memory: RESOURCE_EX"),
        ("INTERNAL: no kernel", None),
    ],
)
def test_out_of_memory_is_a_line_and_no_other_error_is(
    monkeypatch: pytest.MonkeyPatch, raised: str, line: str | None
) -> None:
    def fails(_: Any) -> None:
        raise jax.errors.JaxRuntimeError(raised)

    monkeypatch.setattr("benchmarks.on_device.sampling.measure", fails)
    sent = message("sampling depth 5, 128 px")
    if line is None:
        with pytest.raises(jax.errors.JaxRuntimeError):
            child.respond(sent)
    else:
        answer = child.respond(sent)
        assert answer["error"].startswith(line) and "\n" not in answer["error"]


def test_a_step_that_runs_out_of_memory_is_tried_with_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # a compiler that says 1 MB an image, and a device that has room for 20 images, not for the 24 that this allows
    class Compiled:
        def __init__(self, run: Any) -> None:
            self.batch, self.temp_size_in_bytes = run.batch, 1

        def memory_analysis(self) -> Any:
            return self

    monkeypatch.setattr(training, "compiled_step", Compiled)
    monkeypatch.setattr(training, "needed_bytes", lambda compiled: 1e6 * compiled.batch)
    monkeypatch.setattr(training, "state_bytes", lambda _: 0)

    def timed(compiled: Any, run: Any, _: Any) -> dict[str, Any]:
        if run.batch > 20:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return {"batch": run.batch}

    monkeypatch.setattr(training, "_timed", timed)
    found = training.measure({**message("training depth 2, 32 px"), "limit_bytes": 25e6})
    assert found["batch"] == 20
    assert {"batch": 24, "out_of_memory": True} in found["tried"]


def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.device", "--out", str(tmp_path), "--only", "ceilings"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=device.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("device: jax sees cpu alone; expected a GPU")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--minutes", "0"], "minutes=0: expected more than 0"),
        (["--only", "trainings"], "only=['trainings']: no such measurement"),
        (["--out", "/dev/null/here"], "out='/dev/null/here': Not a directory"),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1


def test_what_there_was_no_time_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "ask", lambda *_: pytest.fail("nothing may be begun"))
    assert device.main(["--minutes", "0.1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for job in jobs()[1:]:
        assert f"| {job.name} | – | not measured: 6 s of 0.1 minutes were left |" in told
    assert "Ceilings: not measured." in told


# ---- the largest batch ---------------------------------------------------------------------------------------------


def test_rungs_are_an_eighth_to_a_quarter_apart() -> None:
    found = [size for size, _ in zip(rungs(), range(40), strict=False)]
    assert found[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert all(1.14 < later / earlier <= 1.25 for earlier, later in itertools.pairwise(found[3:]))
    assert [rung(0.5), rung(9.9), rung(1000)] == [1, 8, 896]


Memory = Callable[[int], float]
MEMORIES: dict[str, Memory] = {
    "a line": lambda n: 30 + 0.8 * n,
    "gradients beside": lambda n: 30 + max(16, 8 + 0.8 * n),
    "curved": lambda n: 30 + 0.5 * n + 0.002 * n * n,
    "in steps": lambda n: 30 + 0.8 * (-(-n // 8) * 8),
}


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("first", [16, 48, 56, 400])
def test_the_batch_found_is_the_largest_or_the_next_to_it(name: str, first: int) -> None:
    memory, limit, asked_of = MEMORIES[name], 72.6, []

    def needs(batch: int) -> float:
        asked_of.append(batch)
        return memory(batch)

    found = largest_batch(needs, limit, 30.0, first)
    sizes = [size for size, _ in zip(rungs(), range(60), strict=False)]
    best = max(size for size in sizes if memory(size) <= limit)
    assert found in asked_of and memory(found) <= limit
    assert len(set(asked_of)) == len(asked_of) <= TRIES + 1
    assert sizes.index(found) >= sizes.index(best) - (1 if first in (48, 56) else 2)


def test_a_good_first_guess_is_one_compilation() -> None:
    asked_of: list[int] = []
    memory = MEMORIES["a line"]
    assert largest_batch(lambda n: asked_of.append(n) or memory(n), 72.6, 30.0, 48) == 48
    assert asked_of == [48]


def test_no_batch_fits() -> None:
    assert largest_batch(lambda n: 80 + n, 72.6, 30.0, 48) is None
    assert largest_batch(lambda n: float("inf"), 72.6, 30.0, 48) is None
    assert largest_batch(lambda n: 70 + n, 72.6, 30.0, 48) == 2


def test_a_batch_that_fits_is_enough_where_time_is_short() -> None:
    asked_of: list[int] = []

    def needs(batch: int) -> float:
        asked_of.append(batch)
        return 30.0 + batch

    assert largest_batch(needs, 72.6, 30.0, 8, lambda: False) == 8 and asked_of == [8]
    assert largest_batch(needs, 72.6, 30.0, 56, lambda: False) == 28 and asked_of == [8, 56, 28]
    assert largest_batch(needs, 72.6, 30.0, 8) == 40


def test_a_goal_of_memory_is_all_that_the_process_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_SHARE_VARIABLE, raising=False)
    drawing = next(job for job in jobs() if "bytes" in job.goals)
    measured_ = {"memory_bytes": GPU_SHARE * 80e9}
    assert float(device.environment(drawing, measured_)[GPU_SHARE_VARIABLE]) == pytest.approx(23 / 80, abs=1e-4)
    others = [(drawing, None), (drawing, {"memory_bytes": None}), (jobs()[0], measured_)]
    assert {float(device.environment(*one)[GPU_SHARE_VARIABLE]) for one in others} == {GPU_SHARE}


# ---- floors and rows -----------------------------------------------------------------------------------------------

CEILINGS = {
    "product_flops": 2.0 * 8192**3,
    "product_seconds": [1.5e-3, 1.4e-3, 9.0],
    "copy_bytes": 2.0**31,
    "copy_seconds": [0.7e-3, 0.8e-3, 0.7e-3],
}
DEVICE = {"datasheet_flops_per_second": 989.4e12}


def answer(seconds: float, **fields: Any) -> dict[str, Any]:
    given = {"batch": 48, "seconds": [seconds, 2 * seconds, seconds / 2], "flops": 8e13, "floor_bytes": 6e10}
    return {**given, "analysis_bytes": 60 * 2**30, "peak_bytes": 61 * 2**30, "bound": None, **fields}


def test_floors_are_of_medians() -> None:
    measured = rates(CEILINGS)
    assert measured["flops_per_second"] == pytest.approx(1.099511627776e12 / 1.5e-3)
    assert measured["bytes_per_second"] == pytest.approx(2147483648 / 0.7e-3)
    assert floor(8e13, 6e10, measured) == (pytest.approx(8e13 * 1.5e-3 / 1.099511627776e12), "compute")
    assert floor(8e12, 6e10, measured) == (pytest.approx(6e10 * 0.7e-3 / 2147483648), "memory")


def test_goals_are_met_or_missed() -> None:
    share = Job("training", "training", 1, 2, {"product_share": 0.6})
    ceiling = 1.099511627776e12 / 1.5e-3
    for reached, met in ((0.61, True), (0.59, False)):
        found = row(share, answer(8e13 / (reached * ceiling)), rates(CEILINGS), DEVICE)
        assert found["product_share"] == pytest.approx(reached)
        assert found["datasheet_share"] == pytest.approx(reached * ceiling / 989.4e12)
        assert [goal["met"] for goal in found["goals"]] == [met]
    drawn = Job("sampling", "sampling", 1, 2, {"seconds": 6.0, "bytes": 24e9})
    found = row(drawn, answer(5.9, peak_bytes=25_000_000_000), rates(CEILINGS), DEVICE)
    assert [goal["met"] for goal in found["goals"]] == [True, False]
    assert "6 s: met; 24 GB: MISSED" in table([found])[-1]


def test_a_row_without_ceilings_knows_no_share() -> None:
    share = Job("training", "training", 1, 2, {"product_share": 0.6})
    found = row(share, answer(0.2, peak_bytes=None), None, None)
    assert found["product_share"] is found["floor_seconds"] is found["datasheet_share"] is None
    line = table([found])[-1]
    assert "not known" in line and "60.0 (by the compiler)" in line
    assert line.count(" | ") == len(COLUMNS) - 1


def test_the_goals_are_the_papers_sizes() -> None:
    goals = {job.name: job.goals for job in jobs() if job.goals}
    assert goals == {
        "sampling depth 38, 1024 px": {"seconds": 6.0, "bytes": 24e9},
        "training depth 24, 256 px": {"product_share": 0.6},
        "training depth 24, 256 px, scanned": {"product_share": 0.6},
        "training depth 24, 512 px": {"product_share": 0.6},
        "training depth 24, 256 px, remat dots": {"product_share": 0.6},
        "training depth 24, 512 px, remat dots": {"product_share": 0.6},
        "training depth 24, 256 px, accumulation 2": {"product_share": 0.6},
    }
    wanted = {f"training depth {depth}, {side} px" for depth in (15, 18, 24) for side in (256, 512)}
    wanted |= {f"sampling depth {depth}, 1024 px" for depth in (24, 38)}
    assert wanted <= {job.name for job in jobs()}
    assert jobs()[0].kind == "ceilings"
