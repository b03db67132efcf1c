"""Checkpoints at a store: one that is damaged there is passed over, and kept aside."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdit_jax.remote import MIRRORS, Remote, open_root
from mmdit_jax.training.checkpoint import Checkpoints

pytest_plugins = ["stores"]


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_damaged_checkpoint_at_a_store(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(MIRRORS, str(tmp_path))
    run_dir = open_root(url) / "study" / "run"
    states = {step: {"weights": jnp.arange(64.0) + step} for step in (1, 2, 3)}
    checkpoints = Checkpoints(run_dir, keep=3)
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.close()
    place = Remote(f"{url}/study/run")
    manifest = place / "checkpoints/3/state/manifest.ocdbt"
    whole = {name: found.size for name, found in place.listing().items() if name.startswith("checkpoints/3/")}
    assert "checkpoints/3/state/manifest.ocdbt" in whole
    manifest.put(b"damaged")

    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), states[1]
    )
    checkpoints = Checkpoints(run_dir, keep=3)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.restore(abstract)
    assert found is not None and found[0] == 2
    np.testing.assert_array_equal(found[1]["weights"], states[2]["weights"])
    assert any("/checkpoints/3: damaged, passed over" in record.getMessage() for record in caplog.records)
    there = place.listing()
    assert not any(name.startswith("checkpoints/3/") for name in there)
    moved = {name: found.size for name, found in there.items() if name.startswith("damaged/checkpoints-3-")}
    aside = {name.split("/", 2)[2]: size for name, size in moved.items()}
    expected = {name.removeprefix("checkpoints/3/"): size for name, size in whole.items()}
    assert aside == expected | {"state/manifest.ocdbt": len(b"damaged")}
    checkpoints.save(3, states[3])  # again
    checkpoints.close()
    found = Checkpoints(run_dir, keep=3).restore(abstract)
    assert found is not None and found[0] == 3
