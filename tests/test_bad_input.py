"""Bad input: one line that says what, which value and what would work; exit code 2; nothing lost."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from launch.cli import main
from launch.planning.paper import planned_run
from launch.studies import load_study
from mmdit_jax.config import HardwareConfig, Run
from mmdit_jax.config_values import overridden
from mmdit_jax.errors import UserError
from mmdit_jax.sharding import AXES
from mmdit_jax.training.program import Solo

BASE = Path(__file__).parent


def told(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that ``mmdit args`` says on its way out with exit code 2."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.depth=0", "depth=0: expected 1 or more"),
        ("model.head_size=7", "with heads=2 the width is 14"),
        ("formulation=rf/lognrm(0.00,1.00)", "rf/lognorm("),
        ("formulation=nothing", "did you mean"),
        ("optimizer.learning_rat=1", "did you mean 'learning_rate'"),
        ("modle.depth=1", "did you mean 'model'"),
        ("steps=many", "steps='many': expected int"),
        ("steps=0", "steps=0: expected a whole number, 1 or more"),
        ("model.context_dim=5", "model.context_dim=5: expected"),
        ("data.text_encoders=('wrods',)", "words"),
        ("optimizer.name=adam", "adamw"),
        ("optimizer.adam_learning_rate=abc", "optimizer.adam_learning_rate='abc': expected a number above 0"),
        ("evaluation.sampler.shift=abc", "shift='abc': expected a number"),
        ("evaluation.sampler.interval=abc", "interval=('abc',): expected two levels"),
        ("evaluation.settings=abc", "evaluation.settings='abc': expected a SamplerConfig"),
        ("evaluation.seed=-1", "evaluation.seed=-1: expected a whole number, 0 to 2**32 - 1"),
        ("seed=-1", "seed=-1: expected a whole number, 0 to 2**32 - 1"),
        ("seed=4294967296", "seed=4294967296: expected a whole number, 0 to 2**32 - 1"),
        ("optimizer", "expected field=value"),
        ("optimizer=3", "a group of fields"),
    ],
)
def test_field_values(tmp_path, capsys, tiny_study, setting, expected) -> None:
    line = told(capsys, "study", "plan", str(tiny_study), "--root", str(tmp_path / "s"), "--set", setting)
    assert expected in line
    assert not (tmp_path / "s").exists()


def test_unknown_study_run_and_file(tmp_path, capsys, tiny_study) -> None:
    assert "did you mean 'quickstart'" in told(capsys, "study", "run", "quikstart", "--root", str(tmp_path))
    assert "no such file" in told(capsys, "study", "run", "missing.py", "--root", str(tmp_path))
    line = told(capsys, "train", str(tiny_study), "--run", "rg", "--root", str(tmp_path))
    assert "run='rg'" in line and "did you mean 'rf-" in line
    assert list(tmp_path.glob("tiny")) == []


def test_unknown_field_in_a_study_file(tmp_path, capsys) -> None:
    study = tmp_path / "mine.py"
    study.write_text("from mmdit_jax.config import *\ndef study():\n    return OptimizerConfig(learning_rte=1.0)\n")
    line = told(capsys, "study", "plan", str(study))
    assert "line 3" in line and "did you mean 'learning_rate'" in line


def test_missing_checkpoint(tmp_path, capsys, tiny_study) -> None:
    line = told(capsys, "sample", str(tiny_study), "--run", "rf", "a red circle", "--root", str(tmp_path))
    assert "checkpoint=" in line and "train the run first" in line


def test_sampling_options(tmp_path, capsys, tiny_study) -> None:
    """Told before the run's weights are looked for."""
    sample = ("sample", str(tiny_study), "--run", "rf", "a red circle", "--root", str(tmp_path))
    assert "seed=-1: expected a whole number" in told(capsys, *sample, "--seed", "-1")
    assert "interval=(0.6, 0.4): expected two levels" in told(capsys, *sample, "--interval", "0.6,0.4")
    with pytest.raises(SystemExit) as caught:
        main([*sample, "--interval", "abc"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "argument --interval: 'abc': expected two noise levels, as 0.1,0.8" in said


@pytest.mark.parametrize("root", ["/proc/nothing", "file/below"])
def test_unwritable_root(tmp_path, capsys, tiny_study, monkeypatch, root) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    line = told(capsys, "study", "run", str(tiny_study), "--root", root)
    assert f"root={root}" in line and "choose another --root" in line
    assert Path("file").read_text() == "in the way"


def test_runs_that_do_not_divide_over_their_devices(tiny_study: Path) -> None:
    """Told before anything is compiled: there are no such devices here."""
    run = load_study(str(tiny_study)).runs[0]
    heads = replace(run, model=replace(run.model, heads=6))

    def told_by(run: Run, *shape: int) -> str:
        with pytest.raises(UserError) as caught:
            Solo(run, AbstractMesh(shape, AXES))  # type: ignore[arg-type]
        return str(caught.value)

    assert told_by(run, 3, 4, 1, 1) == "batch=8: expected a multiple of 12, data x fsdp = 12 devices"
    parts = replace(run, hardware=HardwareConfig(accumulation=4))
    expected = "batch=8: expected a multiple of 16, data x fsdp = 4 devices x accumulation = 4"
    assert told_by(parts, 4, 1, 1, 1) == expected
    assert told_by(heads, 1, 1, 1, 4) == "hardware.tensor=4: expected a divisor of the model's 6 heads (1, 2)"
    assert told_by(heads, 2, 2, 2, 9) == "hardware.tensor=9: expected a divisor of the model's 6 heads (1, 2, 3, 6)"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("hardware.tensor=4", "hardware.tensor=4: expected a divisor of the model's 2 heads (1, 2)"),
        ("batch=6", "batch=6: expected a multiple of 4, data x fsdp = 4 devices"),
    ],
)
def test_a_run_that_does_not_divide_is_told_in_one_line(mmdit, setting: str, expected: str) -> None:
    refused = mmdit("train", "tiny.py", "--run", "rf", "--quiet", "--set", setting, devices=4)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.strip() == f"mmdit: {expected}"
    assert not list(mmdit.folder.glob("studies/tiny/*/checkpoints/[0-9]*"))


@pytest.mark.slow
def test_disk_full_while_saving(mmdit) -> None:
    """Writes past a limit fail, as on a full disk; what was there before stays, and the run goes on afterwards."""
    train = ("train", "tiny.py", "--run", "rf", "--quiet")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    refused = mmdit("data", "build", "scenes", "--examples", "4096", preexec_fn=limit)
    assert refused.returncode == 2 and not list(mmdit.folder.glob("data/**/*.array_record*"))
    assert refused.stderr.strip().endswith("cannot write (File too large); free some space"), refused.stderr
    assert mmdit("data", "build", "scenes", "--examples", "256").returncode == 0
    full = mmdit(*train, preexec_fn=limit)
    assert full.returncode == 2, full.stderr
    lines = [line for line in full.stderr.splitlines() if line.startswith("mmdit: ")]
    assert len(lines) == 1 and "disk full" in lines[0]
    folder = next((mmdit.folder / "studies" / "tiny").glob("rf-*"))
    assert not (folder / "result.json").exists()
    finished = mmdit(*train)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((folder / "result.json").read_text())["steps"] == 40


@pytest.mark.slow
def test_divergence_says_where_and_exits_3(mmdit) -> None:
    wild = (
        "train",
        "tiny.py",
        "--run",
        "rf",
        "--quiet",
        "--set",
        "optimizer.learning_rate=1e30",
        "--set",
        "optimizer.clip_norm=1e30",
    )
    first = mmdit(*wild)
    assert first.returncode == 3, first.stderr
    assert "diverged at step" in first.stderr and "t bin" in first.stderr
    again = mmdit(*wild)
    assert again.returncode == 3
    assert again.stderr.strip().splitlines()[-1] == first.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("text", ["ema,optimizer", "ema, optimizer", "('ema','optimizer')", "['ema', 'optimizer']"])
def test_several_values_are_given_with_commas_or_as_python_writes_them(text: str) -> None:
    run = planned_run(2)
    assert overridden(run, [f"hardware.offload={text}"]).hardware.offload == ("ema", "optimizer")
    assert overridden(run, ["hardware.offload=ema"]).hardware.offload == ("ema",)
