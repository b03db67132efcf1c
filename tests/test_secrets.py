"""Keys stay in the environment, and nothing that lies in a study's folder is ever executed when it is read."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import numpy as np
import pytest
from flax import nnx

from launch import cli
from launch.settings import _drawn
from launch.studies import load_study
from mmdit_jax.data.encode import plan_file, scan
from mmdit_jax.errors import UserError
from mmdit_jax.models.text.weights import load

HERE = Path(__file__).resolve().parent.parent
PACKAGES = ("mmdit_jax", "launch", "scaling", "experiments", "benchmarks")
SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "0123456789abcdef" * 2 + "aa",
    "AWS_SECRET_ACCESS_KEY": "aws5ec2e7aws5ec2e7aws5ec2e7aws5ec2e7aws1",
    "HF_TOKEN": "hf_5ec2e75ec2e75ec2e75ec2e75ec2e7",
}


def holders(folder: Path) -> list[str]:
    """Files that have one of the secrets in them, or in their name."""
    words = [value.encode() for value in SECRETS.values()]
    paths = [path for path in folder.rglob("*") if any(word in str(path).encode() for word in words)]
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [
        str(path) for path in [*paths, *(path for path in files if any(word in path.read_bytes() for word in words))]
    ]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Known to this process, and those it starts."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def test_what_looks_for_them_finds_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"\x00" + SECRETS["HF_TOKEN"].encode() + b"\n")
    (tmp_path / SECRETS["WANDB_API_KEY"]).touch()
    assert len(holders(tmp_path)) == 2


@pytest.mark.slow
def test_no_secret_is_written_where_runs_are_submitted_and_trained(
    mmdit: Any, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb offline writes its own files, too; the runs had the key all the while."""
    study = mmdit.study
    spy = (
        "\nimport os\nwith open('seen', 'a') as seen:\n    print(len(os.environ.get('WANDB_API_KEY', '')), file=seen)\n"
    )
    study.write_text(study.read_text() + spy)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TMPDIR", str(mmdit.folder))  # where cores are claimed: other tests' runs are not waited for
    done = mmdit("study", "submit", "tiny.py", "--executor", "local", "--only", "rf", "--wait", "--set", "steps=10")
    status = mmdit("study", "status", "tiny.py", "--json", "--set", "steps=10")
    assert json.loads(status.stdout)["runs"][0]["state"] == "done", done.stderr
    (run_dir,) = (mmdit.folder / "studies" / "tiny").glob("rf-*")
    assert list((run_dir / "wandb").rglob("*.wandb"))  # it did write
    assert {int(line) for line in (mmdit.folder / "seen").read_text().split()} == {len(SECRETS["WANDB_API_KEY"])}
    assert holders(mmdit.folder) == []
    told = done.stdout + done.stderr + status.stdout + status.stderr
    assert not any(value in told for value in secrets.values())


@pytest.mark.parametrize("words", [("--dry-run",), (), ("--array",)])
def test_no_secret_in_what_engines_are_given(
    mmdit: Any,
    tmp_path: Path,
    secrets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    """Neither in a script nor on a command line; Slurm brings the environment along."""
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(mmdit.folder)
    kubernetes = ["--executor", "k8s", "--image", "r/mmdit@sha256:0", "--secret", "wandb", "--dry-run"]
    assert cli.main(["study", "submit", "tiny.py", *kubernetes]) == 0
    assert cli.main(["study", "submit", "tiny.py", "--executor", "slurm", *words]) == 0
    told = capsys.readouterr()
    assert "WANDB_API_KEY" in told.out  # by its name
    assert not any(value in told.out + told.err for value in secrets.values())
    assert holders(tmp_path) == []


MODULES = sorted(path for package in PACKAGES for path in (HERE / package).rglob("*.py"))
FORBIDDEN = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
# The process that compiles for another machine has its request through a pipe, from the one that started it.
A_PIPE = {"launch/planning/ask.py": {"dumps"}, "launch/planning/child.py": {"load"}}


def unpicklers(tree: ast.AST) -> set[str]:
    """What of a module could unpickle: imports, and calls that do so by themselves."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            raised = [alias.name for alias in node.names] == ["UnpicklingError"]  # by torch's own reader
            found |= set() if raised else {str(node.module)}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if name.rsplit(".", 1)[-1] in ("import_module", "__import__"):
                found |= {word for word in words if isinstance(word, str) and word.split(".")[0] in FORBIDDEN}
            only = [key.value for key in node.keywords if key.arg == "weights_only"]
            weights = bool(only) and isinstance(only[0], ast.Constant) and only[0].value is True
            if name.rsplit(".", 1)[-1] == "read_pickle" or (name == "torch.load" and not weights):
                found.add(name)
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    found.add("allow_pickle")
            if name in ("np.load", "numpy.load") and len(node.args) > 2:
                found.add("allow_pickle")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import numpy, cloudpickle as c",
        "from joblib import load",
        "def f():\n    from dill import loads",
        "importlib.import_module('pickle')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "np.load(path, None, True)",
        "pd.read_pickle(path)",
        "torch.load(path)",
        "torch.load(path, weights_only=trusted)",
        "from pickle import UnpicklingError, loads",
    ],
)
def test_what_looks_for_unpicklers_finds_them(line: str) -> None:
    assert unpicklers(ast.parse(line))
    assert not unpicklers(ast.parse("import json\nnp.load(path)\nnp.load(path, allow_pickle=False)"))
    assert not unpicklers(ast.parse("from pickle import UnpicklingError\ntorch.load(path, weights_only=True)"))


def test_no_module_unpickles() -> None:
    """But for one that reads a pipe from its parent, and nothing else."""
    assert len(MODULES) > 100
    found = {}
    for path in MODULES:
        name = path.relative_to(HERE).as_posix()
        tree = ast.parse(path.read_text())
        if name in A_PIPE:
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            used = {ast.unparse(node) for node in calls if ast.unparse(node.func).startswith("pickle.")}
            assert used <= {"pickle.dumps(request)", "pickle.load(sys.stdin.buffer)"}
            assert {word.split("(")[0].removeprefix("pickle.") for word in used} == A_PIPE[name]
        elif told := unpicklers(tree):
            found[name] = told
    assert found == {}


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self._mark}'",)


def evil_npz(path: Path, mark: Path, *names: str) -> Path:
    array = np.empty(1, object)
    array[0] = Evil(mark)
    np.savez(path, **dict.fromkeys(names, array))
    return path


READERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "scores of settings": (_drawn, ("clip", "fid", "path_length")),
    "plan of an encoding": (plan_file.load, ("told", "items", "starts")),
    "scan of an encoding": (scan.load, ("told", *scan._ARRAYS)),
    "weights": (lambda path: load(path, nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "make"), ("a",)),
}


def test_the_evil_object_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", READERS)
def test_pickled_arrays_are_refused(tmp_path: Path, name: str) -> None:
    load, names = READERS[name]
    path = evil_npz(tmp_path / "file.npz", tmp_path / "pwned", *names)
    with pytest.raises(ValueError):  # UserError is one, too
        load(path)
    path.write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    with pytest.raises((ValueError, UserError)):
        load(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("action", ["status", "collect", "report", "plan"])
def test_a_pickled_result_is_refused(
    mmdit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """In one line that names it; of a table, in its row."""
    monkeypatch.chdir(mmdit.folder)
    run_dir = mmdit.folder / "studies" / "tiny" / load_study("tiny.py").runs[0].run_id
    run_dir.mkdir(parents=True)
    (run_dir / "result.json").write_bytes(pickle.dumps(Evil(mmdit.folder / "pwned")))
    (run_dir / "events.jsonl").write_bytes(pickle.dumps(Evil(mmdit.folder / "pwned")) + b"\n")
    code, told = cli.main(["study", action, "tiny.py"]), capsys.readouterr()
    if action in ("status", "plan"):
        (row,) = (line for line in told.out.splitlines() if line.startswith("rf "))
        assert code == 0 and "failed" in row and (action == "plan" or "damaged; delete it" in row)
    else:
        assert code == 2 and told.err.startswith("mmdit: result=") and "damaged" in told.err
        assert len(told.err.splitlines()) == 1
    assert not (mmdit.folder / "pwned").exists()
    shutil.rmtree(run_dir)
