"""What `mmdit plan` makes of its options: by a compiler that answers by the counting."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import cli, plan
from launch.planning import ask as asking
from launch.planning.ask import CompilerDied
from launch.planning.estimate import estimate
from launch.planning.fit import NOTHING, NOTHING_DRAWS, ways_to_draw, ways_to_fit
from launch.planning.layout import Layout, layout_of, layouts, why_not
from launch.planning.paper import planned_run
from launch.planning.request import Request, code, described
from launch.planning.search import ranked, search
from launch.planning.target import parse
from launch.planning.tell import plan_lines
from mmdit_jax.chips import GIB

SMALL = ["plan", "--depth", "2", "--batch", "64", "--set", "model.head_size=64"]


def counted(request: Request) -> dict[str, Any]:
    """A plan by the counting."""
    found = estimate(request.run, layout_of(request.run), request.target)
    peak, hbm = found.bytes / GIB, request.target.usable_bytes / GIB
    seconds = {
        f"{name}_seconds": found.seconds for name in ("step", "compute", "hbm", "interconnect", "network", "host")
    }
    memory = {
        "peak_gib": peak,
        "hbm_gib": hbm,
        "argument_gib": peak / 2,
        "temporary_gib": peak / 2,
        "fits": peak <= hbm,
    }
    flops = {"flops_per_step": 1.0, "device_flops": 1.0, "mfu_bound": 0.5, "bound": "hbm", "collective_bytes": {}}
    return {**described(request), **memory, **seconds, **flops, "host_bytes": 0, "memoised": False}


@pytest.fixture(autouse=True)
def by_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ask", lambda request, memo: counted(request))


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    assert cli.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_only_data_crosses_slices(capsys: pytest.CaptureFixture[str]) -> None:
    for topology, words in (("2*v5e:2x2", SMALL), ("4*v5p:4x4x4", ["plan", "--depth", "38", "--resolution", "1024"])):
        target = parse(topology)
        for search_ in ([], ["--auto"]):
            found = asked(capsys, *words, "--topology", topology, *search_)
            shards = found["mesh"]["fsdp"] * found["mesh"]["sequence"] * found["mesh"]["tensor"]
            assert target.devices // shards % target.slices == 0
    reason = why_not(planned_run(24), Layout(fsdp=512), parse("2*v6e:16x16"))
    assert reason == "data=1 is no multiple of the 2 slices, which only data may cross"


def test_the_network_between_slices_takes_its_time() -> None:
    """Gradients in float32 to and fro, each device of a slice its own part; on a network slow enough, nothing else."""
    run, pod = planned_run(38), parse("2*v5p:8x8x4")
    slow = replace(pod, chip=replace(pod.chip, network_bandwidth=1e6))
    for fsdp in (4, 32, 256):
        sent = 2 * 4 * run.model.num_params() * (1 - 1 / 2) / 256
        assert estimate(run, Layout(fsdp=fsdp), slow).interconnect_seconds == pytest.approx(sent / 1e6, rel=0.01)


def test_set_asks_for_a_layout_as_its_options_do(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--topology", "h100:1x8"]
    found = asked(capsys, *words, "--set", "model.remat=full", "--set", "hardware.accumulation=4")
    assert (found["remat"], found["accumulation"]) == ("full", 4)
    assert asked(capsys, *words, "--set", "hardware.tensor=2")["mesh"]["tensor"] == 2
    assert "--set model.remat=full says otherwise" in refused(
        capsys, *words, "--set", "model.remat=full", "--remat", "none"
    )


def test_a_search_keeps_to_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, *SMALL, "--topology", "h100:1x8", "--auto", "--tensor", "2", "--remat", "none")
    assert found["mesh"]["tensor"] == 2 and found["remat"] == "none"
    assert {(item["layout"]["tensor"], item["layout"]["remat"]) for item in found["tried"]} == {(2, "none")}
    every = [*layouts(planned_run(2, batch=64, overrides=["model.head_size=64"]), parse("h100:1x8"), {"tensor": 2})]
    assert found["more_layouts"] < len(every)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["quickstart", "--batch", "7"], "--batch: of one run"),
        (["quickstart", "--auto"], "--auto: of one run"),
        (["quickstart", "--sample"], "--sample: of one run"),
        (["--depth", "2", "--sample", "--fsdp", "4"], "--fsdp: of training"),
        (["--depth", "2", "--sample", "--auto"], "--auto: of training"),
        (["--depth", "2", "--sample", "--set", "model.remat=full"], "--set model.remat: of training"),
        (["--depth", "2", "--sample", "--set", "hardware.offload=('ema',)"], "--set hardware.offload: of training"),
        (["--depth", "2", "--sample", "--set", "optimizer.moments=bfloat16"], "--set optimizer.moments: of training"),
        (
            ["--depth", "2", "--batch", "64", "--set", "batch=32"],
            "--batch=64: expected it or --set batch=...",
        ),
        (
            ["--depth", "2", "--resolution", "64", "--set", "data.resolution=16"],
            "--resolution=64: expected it or",
        ),
        (["--depth", "2", "--tries", "3"], "tries=3: expected with --auto"),
        (["--depth", "2", "--fsdp", "0"], "fsdp=0: expected more than 0"),
        (["--depth", "2", "--accumulation", "0"], "accumulation=0: expected more than 0"),
        (["--depth", "2", "--factor", "0"], "factor=0: expected more than 0"),
        (["--depth", "2", "--price", "nan"], "price=nan"),
        (["--depth", "2", "--price", "inf"], "price=inf: expected a finite number"),
        (["--depth", "38", "--sequence", "16"], "sequence=16: "),
        (["--depth", "15", "--tensor", "2"], "tensor=2 does not divide 15 heads"),
    ],
)
def test_what_has_no_meaning_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "plan", *words, "--topology", "v5p:2x2x2")
    assert says in line and "fsdp=256" not in line


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v5p:1000000x1000000x4", "v5p:16x20x28 is a whole one"),
        ("v5p:8x8x4x4", "a v5p has 3 axes"),
        ("v5e:3", "a v5e has 2 axes"),
        ("v6e:4x4x4", "a v6e has 2 axes"),
        ("v6e:32x32", "v6e:16x16 is a whole one"),
        ("h100:100000x8", "expected 131,072 or less"),
    ],
)
def test_pods_that_nobody_has(topology: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *SMALL, "--topology", topology)


def test_any_number_of_parts_may_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL[:3], "--batch", "768", "--topology", "h100:1x1", "--accumulation", "3"]
    assert asked(capsys, *words)["accumulation"] == 3


def test_ways_to_fit_fit_and_there_is_one_where_there_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    """Each way is planned anew, by the counting that it was found by."""
    for words, needle in (
        (["--depth", "38", "--topology", "h100:1x1", "--remat", "full"], "devices of this kind"),
        (["--depth", "18", "--resolution", "1024", "--topology", "h100:1x1", "--remat", "none"], "accumulation"),
        (["--depth", "24", "--topology", "h100:1x2", "--fsdp", "1", "--remat", "none"], "fsdp"),
    ):
        found = asked(capsys, "plan", *words, "--accumulation", "1")
        assert not found["fits"] and found["ways_to_fit"] and needle in " ".join(found["ways_to_fit"]), words
    run, target = planned_run(24, batch=64), parse("h100:1x2")
    laid = Layout(fsdp=2).of(run)
    (first, *_) = ways_to_fit(laid, target, 90.0)
    gib = float(first.split("about ")[1].split(" GiB")[0])
    assert gib <= 0.95 * target.usable_bytes / GIB
    changes = dict(item.split(" ") for item in first.split(": about")[0].split(", "))
    fields = {name: changes.pop(name) for name in list(changes) if "." in name}
    again = planned_run(24, batch=64, overrides=[f"{name}={value}" for name, value in fields.items()])
    values = {**vars(Layout(fsdp=2)), **{k: v if k == "remat" else int(v) for k, v in changes.items()}}
    scale = 90.0 / (estimate(laid, Layout(fsdp=2), target).bytes / GIB)
    assert estimate(again, Layout(**values), target).bytes * scale / GIB == pytest.approx(gib, abs=0.06)


def test_kept_answers_are_of_the_code_that_made_them() -> None:
    """All that the compiling process imports of ours is in the key, but for what computes nothing."""
    script = (
        "import sys, launch.planning.lower, launch.planning.measure\n"
        "for name, module in sys.modules.items():\n"
        "    if name.split('.')[0] in ('mmdit_jax', 'launch') and module.__file__: print(name, module.__file__)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    files = {path.resolve() for path in code()}
    loaded = dict(line.split(" ", 1) for line in said.splitlines())
    left_out = {name for name, file in loaded.items() if Path(file).resolve() not in files}
    packages = {"launch", "launch.planning", "mmdit_jax", "mmdit_jax.data", "mmdit_jax.evaluation"}
    reads = ("config_values", "copies", "data.store", "errors", "files", "locks", "pauses", "processes", "remote")
    assert left_out == packages | {f"mmdit_jax.{name}" for name in (*reads, "versions")}


def test_a_price_is_told_of_training_drawing_and_a_study(capsys: pytest.CaptureFixture[str], tiny_study: Path) -> None:
    def told(*words: str) -> str:
        assert cli.main(["plan", *words, "--topology", "h100:1x1", "--price", "3600"]) == 0
        return capsys.readouterr().out

    one = counted(Request(planned_run(2, batch=64, overrides=["model.head_size=64"]), parse("h100:1x1")))
    assert f", {one['step_seconds'] * 500_000:,.0f} at the price given" in told(*SMALL[1:], "--remat", "none")
    drawn = told("--sample", "--depth", "2")
    assert "at the price given" in drawn and "with T5" in drawn
    assert "with T5" not in told("--sample", "--depth", "2", "--text-tokens", "77")
    study = told(str(tiny_study))
    assert "cost" in study.splitlines()[1] and study.splitlines()[-1].endswith("in all at the price given")


def test_ways_to_draw() -> None:
    run, target = planned_run(38, resolution=2048, batch=64, sampling=True), parse("h100:1x1")
    ways = ways_to_draw(run, target, 84.0)
    assert any("image(s) at once" in way for way in ways) and any("latents of" in way for way in ways)
    assert ways_to_draw(run, parse("v5e:1x1"), 84.0) == []  # the weights alone are 16 GB of 15.75 GiB


def test_what_is_said_where_nothing_fits() -> None:
    plan = {"mesh": {}, "batch": 1, "depth": 38, "latent": 128, "topology": "v5e:1x1", "remat": "none"}
    plan |= {"accumulation": 1, "fits": False, "peak_gib": 17.0, "hbm_gib": 15.75, "ways_to_fit": []}
    assert plan_lines(plan, [], sampling=True)[-2:] == [f"{'':14}over by 1.25 GiB", f"{'':14}{NOTHING_DRAWS}"]
    assert plan_lines(plan, [], sampling=False)[-1] == f"{'':14}{NOTHING}"


def test_a_compiler_that_is_killed_costs_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real child that kills itself as the kernel would; the search goes on, a study has its other rows."""
    monkeypatch.setattr(asking, "_require_compiler", lambda platform: None)
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {asking.sys.executable} -c '{code}'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(asking.sys, "executable", str(fake))
    run, target = planned_run(2, batch=64, overrides=["model.head_size=64"]), parse("h100:1x8")
    with pytest.raises(CompilerDied, match=r"killed \(signal 9\): out of the host's memory\?"):
        asking.ask(Request(run, target), None)

    deaths = iter([True])

    def compile_(laid: Any) -> dict[str, Any]:
        if next(deaths, False):
            raise CompilerDied("the compiler's process was killed")
        return counted(Request(laid, target))

    best, tried = search(run, target, compile_, 3, lambda line: None)
    assert best is not None and "killed" in " ".join(item.why for item in tried)
    assert (
        layout_of(Layout(**best["mesh"], remat=best["remat"], accumulation=best["accumulation"]).of(run))
        != (ranked(run, target)[0][0][0])
    )

    monkeypatch.setattr(plan, "ask", lambda request, memo: compile_study(request))
    study_deaths = iter([True])

    def compile_study(request: Request) -> dict[str, Any]:
        if next(study_deaths, False):
            raise CompilerDied("the compiler's process was killed")
        return counted(request)

    found = asked(capsys, "plan", "quickstart", "--topology", "h100:1x1")
    assert ["error" in row for row in found["runs"]] == [True, *[False] * 6]
