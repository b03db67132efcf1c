"""GPUs of this machine: each run's own; and what would never start there."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_cases import LONG, Lab, gpus_of, install_gpus, lab_in, two_cores

from launch.executors.job import Machine
from launch.executors.local import Local, LocalEngine, host_gpus
from launch.planning.target import parse
from mmdit_jax.errors import UserError


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with lab_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def four_gpus(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpus(lab, monkeypatch)


@two_cores
@pytest.mark.usefixtures("four_gpus")
def test_each_run_has_gpus_of_its_own(lab: Lab) -> None:
    """And another that was submitted apart from them has what they leave."""
    machine = Machine(parse("h100:1x1"), cpus_per_process=1)
    pair = Machine(parse("h100:1x2"), cpus_per_process=1)
    first = lab.submit(
        lab.job({"a": [{"seconds": 4.0}], "b": [{"seconds": 4.0}], "c": [{}]}, machine), Local(at_once=2)
    )
    lab.until(lambda: len(lab.notes("start")) == 2)
    second = lab.submit(lab.job({"d": [{"seconds": 0.5}], "e": [{}]}, pair), Local(at_once=2))
    lab.until(lambda: not first.live() and not second.live())
    spans: dict[str, list[tuple[float, float]]] = {}
    for item in lab.notes("start"):
        (end,) = lab.notes("end", item["run"])
        assert len(gpus_of(item)) == (2 if item["run"] in "de" else 1)
        for gpu in gpus_of(item):
            spans.setdefault(gpu, []).append((item["at"], end["at"]))
    assert set(spans) <= set("0123")
    for times in map(sorted, spans.values()):
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))


@two_cores
@pytest.mark.usefixtures("four_gpus")
def test_submissions_have_gpus_at_the_same_time(lab: Lab) -> None:
    """Where there are enough for both."""
    first = lab.submit(lab.job({"a": [{"seconds": 4.0}]}, Machine(parse("h100:1x1"), cpus_per_process=1)))
    lab.until(lambda: lab.notes("start"))
    second = lab.submit(lab.job({"b": [{}]}, Machine(parse("h100:1x2"), cpus_per_process=1)))
    lab.until(lambda: not first.live() and not second.live())
    assert lab.notes("start", "b")[0]["at"] < lab.notes("end", "a")[0]["at"]
    assert [gpus_of(item) for item in lab.notes("start")] == [["0"], ["1", "2"]]


@two_cores
@pytest.mark.usefixtures("four_gpus")
def test_processes_share_the_gpus_of_their_run(lab: Lab) -> None:
    """By their numbers among those that the run has."""
    machine = Machine(parse("h100:1x4"), processes_per_node=2, cpus_per_process=1)
    lab.finish(lab.job({"a": [{}]}, machine))
    seen = {item["number"]: item["seen"] for item in lab.notes("start")}
    assert {number: item["JAX_LOCAL_DEVICE_IDS"] for number, item in seen.items()} == {0: "0,1", 1: "2,3"}
    assert all(item["CUDA_VISIBLE_DEVICES"] == "0,1,2,3" for item in seen.values())


@pytest.mark.usefixtures("four_gpus")
def test_gpus_of_a_killed_supervisor_stay_with_its_runs(lab: Lab) -> None:
    """They are in use."""
    machine = Machine(parse("h100:1x4"), cpus_per_process=1)
    lab.submit(lab.job({"a": [LONG]}, machine))
    (started,) = lab.until(lambda: lab.notes("start"))
    os.kill(lab.supervisors[0], signal.SIGKILL)
    engine = lab.submit(lab.job({"b": [{}]}, machine))
    time.sleep(0.5)
    assert not lab.notes("start", "b") and engine.live()["b"].state == "queued"
    os.kill(started["pid"], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.states()["b"] == "done"


@pytest.mark.usefixtures("four_gpus")
def test_a_supervisor_that_misses_gpus_does_not_start(lab: Lab) -> None:
    """They were there when it was asked for; it would wait for ever, and others for it."""
    job = lab.job({"a": [{}]}, Machine(parse("h100:1x4"), cpus_per_process=1))
    engine = LocalEngine(lab.study, Local())
    engine.check(job)
    (lab.folder / "gpus").write_text("GPU 0: NVIDIA H100 (UUID: GPU-0)\n")
    with pytest.raises(UserError, match="the supervisor did not start; see "):
        engine.submit(job)
    assert "1 GPUs here, of 4 that a run needs" in lab.logs() and not engine.live()


@pytest.mark.usefixtures("four_gpus")
def test_gpus_that_the_user_chose(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_gpus() == ["0", "1", "2", "3"]
    for told, expected in (
        ("", []),
        ("-1", []),
        ("2,3", ["2", "3"]),
        ("1,-1,2", ["1"]),
        ("GPU-ab, 3", ["GPU-ab", "3"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert host_gpus() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    lab.finish(lab.job({"a": [{}]}, Machine(parse("h100:1x2"), cpus_per_process=1)))
    assert gpus_of(lab.notes("start")[0]) == ["3", "1"]


@pytest.mark.parametrize(
    "field, machine, options",
    [
        ("nodes", {"nodes": 2}, {}),
        ("topology", {"target": parse("v5e:2x2")}, {}),
        ("topology", {"target": parse("h100:1x5")}, {}),
        ("cpus", {"cpus_per_process": 100_000}, {}),
        ("cpus", {"cpus_per_process": 2}, {"cores": 1}),
        ("cpus", {"cpus_per_process": 100_000}, {"cores": 100_000}),
        ("memory", {"memory_gib": 3.0}, {"memory_gib": 2.5}),
        ("at_once", {}, {"at_once": 0}),
        ("cores", {}, {"cores": -1}),
        ("memory_gib", {}, {"memory_gib": float("nan")}),
        ("grace", {}, {"grace_seconds": -1}),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_what_would_never_start_is_refused(lab: Lab, field: str, machine: Any, options: Any) -> None:
    with pytest.raises(UserError, match=f"^{field}=") as error:
        lab.submit(lab.job({"a": [{}]}, Machine(**machine)), Local(**options))
    assert "\n" not in str(error.value)
    assert not (lab.study / "jobs").exists()
