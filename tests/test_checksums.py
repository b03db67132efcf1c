"""Damage that Orbax does not see in a checkpoint: sums find it, the checkpoint before is taken, and that is said."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from mmdit_jax.errors import UserError
from mmdit_jax.processes import is_infrastructure
from mmdit_jax.training.checkpoint import DAMAGED, Checkpoints
from mmdit_jax.training.checksums import damaged, write_sums, wrong_file


def state_of(step: int) -> dict[str, jax.Array]:
    """A state whose weights say its step, and don't compress."""
    noise = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return {"step": jnp.int32(step), "weights": jnp.asarray(noise + step)}


ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_of(0))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 1, 2 and 3."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return tmp_path


def restored(run_dir: Path, *, read_only: bool = False) -> tuple[int, Any]:
    """What ``Checkpoints`` restores; that its weights are those of its step is checked."""
    checkpoints = Checkpoints(run_dir, keep=3, read_only=read_only)
    try:
        found = checkpoints.restore(ABSTRACT)
    finally:
        checkpoints.close()
    assert found is not None
    step, state = found
    assert int(state["step"]) == step
    np.testing.assert_array_equal(state["weights"], state_of(step)["weights"])
    return found


def largest(checkpoint: Path) -> Path:
    """The file with the weights."""
    return max((item for item in checkpoint.rglob("*") if item.is_file()), key=lambda item: item.stat().st_size)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(item.relative_to(folder)): item.read_bytes() for item in folder.rglob("*") if item.is_file()}


def test_sums_are_of_all_files(run_dir: Path) -> None:
    """By another way to read them than the code under test has."""
    folder = run_dir / "checkpoints" / "3"
    told = json.loads((folder / "checksums.0.json").read_text())
    files = {name: data for name, data in tree(folder).items() if name != "checksums.0.json"}
    assert any("ocdbt.process_0/" in name for name in files) and len(files) > 5
    assert told == {
        "processes": 1,
        "files": {name: [len(data), zlib.crc32(data)] for name, data in files.items()},
    }
    assert restored(run_dir)[0] == 3


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def by_orbax_alone(run_dir: Path) -> np.ndarray | None:
    """The weights of step 3 as Orbax loads them; None where it refuses."""
    checkpointer = ocp.training.Checkpointer(run_dir / "checkpoints", cleanup_tmp_directories=False)
    try:
        return np.asarray(checkpointer.load(3, ABSTRACT)["weights"])
    except Exception:  # whatever it has
        return None
    finally:
        checkpointer.close()


def test_a_flipped_bit_is_a_weight_to_orbax_and_damage_to_us(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = largest(run_dir / "checkpoints" / "3")
    size, silent = weights.stat().st_size, 0
    for at in range(size // 4, 3 * size // 4, size // 12):
        flip(weights, at)
        found = by_orbax_alone(run_dir)
        silent += found is not None and bool((found != np.asarray(state_of(3)["weights"])).any())
        assert restored(run_dir, read_only=True)[0] == 2  # whatever Orbax says
        flip(weights, at)
    assert silent, "Orbax has come to see it: then sums are not needed any more"
    assert restored(run_dir)[0] == 3  # put right again
    flip(weights, size // 2)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert restored(run_dir)[0] == 2
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("mmdit_jax")]
    name = weights.relative_to(run_dir / "checkpoints" / "3")
    assert said == f"checkpoint {run_dir / 'checkpoints' / '3'}: damaged, passed over ({name} is not what was written)"


def truncate(folder: Path) -> str:
    path = largest(folder)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return "is not what was written"


def lose(folder: Path) -> str:
    largest(folder).unlink()
    return "No such file or directory"


def scribble(folder: Path) -> str:
    (folder / "checksums.0.json").write_text('{"files": {"state/_METADATA": [44')
    return "checksums.0.json cannot be read"


def other_kind(folder: Path) -> str:
    (folder / "checksums.0.json").write_text("[1, 2]")
    return "checksums.0.json cannot be read"


def replace_small(folder: Path) -> str:
    """A file with the right size and other content, beside the weights."""
    path = folder / "state" / "_METADATA"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    return "_METADATA is not what was written"


@pytest.mark.parametrize("damage", [truncate, lose, scribble, other_kind, replace_small])
def test_damage_is_passed_over_moved_aside_and_saved_again(
    run_dir: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], str]
) -> None:
    expected = damage(run_dir / "checkpoints" / "3")
    damaged, older = tree(run_dir / "checkpoints" / "3"), tree(run_dir / "checkpoints" / "2")
    with caplog.at_level(logging.WARNING):
        assert restored(run_dir, read_only=True)[0] == 2
    assert not (run_dir / DAMAGED).exists() and tree(run_dir / "checkpoints" / "3") == damaged

    caplog.clear()
    checkpoints = Checkpoints(run_dir, keep=3)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.restore(ABSTRACT)
    assert found is not None and found[0] == 2
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("mmdit_jax")]
    assert f"{run_dir / 'checkpoints' / '3'}: damaged, passed over (" in said and expected in said
    (aside,) = (run_dir / DAMAGED).iterdir()
    assert aside.name.startswith("checkpoints-3-") and tree(aside) == damaged
    assert checkpoints.steps() == [1, 2] and tree(run_dir / "checkpoints" / "2") == older
    checkpoints.save(3, state_of(3))
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 3]
    assert restored(run_dir)[0] == 3
    assert (run_dir / "checkpoints" / "3" / "checksums.0.json").exists()


def test_two_damaged_ones_and_then_none(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 3):
        truncate(run_dir / "checkpoints" / str(step))
    with caplog.at_level(logging.WARNING):
        assert restored(run_dir)[0] == 1
    assert sorted(item.name.split("-")[1] for item in (run_dir / DAMAGED).iterdir()) == ["2", "3"]
    truncate(run_dir / "checkpoints" / "1")
    before = tree(run_dir)
    checkpoints = Checkpoints(run_dir, keep=3)
    with pytest.raises(UserError, match="no older one is readable; restore the files, or delete"):
        checkpoints.restore(ABSTRACT)
    checkpoints.close()
    assert tree(run_dir) == before  # what may be mended by hand stays where it is


def test_a_checkpoint_without_sums_loads(run_dir: Path) -> None:
    """Killed between the two, or written before there were sums."""
    (run_dir / "checkpoints" / "3" / "checksums.0.json").unlink()
    assert wrong_file(run_dir / "checkpoints" / "3") is None
    assert restored(run_dir)[0] == 3


def test_a_named_step_has_nothing_to_fall_back_to(run_dir: Path) -> None:
    truncate(run_dir / "checkpoints" / "3")
    checkpoints = Checkpoints(run_dir, read_only=True)
    with pytest.raises(UserError, match=r"checkpoint=.*/3: truncated"):
        checkpoints.restore(ABSTRACT, step=3)
    found = checkpoints.restore(ABSTRACT, upto=2)
    assert found is not None and found[0] == 2
    checkpoints.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_is_gone_for_a_moment_is_no_damage(
    run_dir: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> list[int]:
        raise OSError(number, os.strerror(number))

    before = tree(run_dir)
    monkeypatch.setattr("mmdit_jax.training.checksums._sum", gone)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
        restored(run_dir)
    assert is_infrastructure(raised.value)
    monkeypatch.undo()
    assert tree(run_dir) == before and restored(run_dir)[0] == 3


def files_of(writers: int, pick: random.Random) -> dict[str, bytes]:
    """Names as in a checkpoint of several processes, with any content."""
    names = ["_CHECKPOINT_METADATA", "commit_success.txt", "state/manifest.ocdbt"]
    names += [f"state/d/{pick.getrandbits(64):x}" for _ in range(pick.randrange(4))]
    names += [f"state/ocdbt.process_{n}/d/{pick.getrandbits(64):x}" for n in range(writers) for _ in range(2)]
    return {name: pick.randbytes(pick.randrange(50)) for name in names}


@pytest.mark.parametrize("writers", [1, 2, 3, 11])
def test_all_files_are_summed_once_and_checked_once(tmp_path: Path, writers: int) -> None:
    """Whatever the number of processes was that wrote, and is that reads: each damaged file is seen by one of them."""
    pick = random.Random(writers)
    files = files_of(writers, pick)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for number in pick.sample(range(writers), writers):  # they end in any order, and see one another's sums
        write_sums(tmp_path, number, writers)
    told = [json.loads((tmp_path / f"checksums.{number}.json").read_text()) for number in range(writers)]
    assert sorted(name for item in told for name in item["files"]) == sorted(files)
    for number, item in enumerate(told):
        assert item["processes"] == writers
        others = [name for name in item["files"] if f"/ocdbt.process_{number}/" not in name]
        assert all("process_" not in name for name in others) and (number == 0 or not others)
    for readers in (1, 2, 3, 4, 7, len(files) + 5):
        assert [wrong_file(tmp_path, number, readers) for number in range(readers)] == [None] * readers
        for name, data in files.items():
            (tmp_path / name).write_bytes(data + b"!")
            seen = [found for number in range(readers) if (found := wrong_file(tmp_path, number, readers))]
            assert seen == [(name, "is not what was written")]
            assert damaged(tmp_path, seen) == f"{name} is not what was written"
            (tmp_path / name).write_bytes(data)
            assert damaged(tmp_path, seen) is None  # another host's view of it was stale
