"""Which rows of a batch a process loads: every row is somewhere, whatever the order of the devices in the mesh."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import fake_devices, value_of
from jax.sharding import Mesh
from process_group import Processes, one_run

from launch.digest import digest
from mmdit_jax.data.order import batch_indices
from mmdit_jax.errors import UserError
from mmdit_jax.models.text import TextStates
from mmdit_jax.parameter_sharding import state_shardings
from mmdit_jax.processes import join
from mmdit_jax.sharding import AXES, make_mesh, own_rows, shard_batch
from mmdit_jax.training.data import ImageData, global_batches

HOST = 4
"""Devices of a process."""


def mesh_of(processes: Any, shape: tuple[int, ...]) -> Any:
    """As much of a mesh as ``own_rows`` looks at: the process of each device, in the order of the mesh."""
    devices = np.empty(len(processes), object)
    devices[:] = [SimpleNamespace(process_index=int(number)) for number in processes]
    return SimpleNamespace(devices=devices.reshape(shape))


SHAPES = [
    (16, 1, 1, 1),
    (1, 16, 1, 1),
    (4, 4, 1, 1),
    (2, 4, 2, 1),
    (2, 2, 2, 2),
    (2, 1, 4, 4),
    (1, 2, 1, 8),
    (1, 1, 4, 4),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_at_the_processes_of_its_devices(shape: tuple[int, ...]) -> None:
    data, fsdp, sequence, tensor = shape
    each = 3
    batch = data * fsdp * each
    count = data * fsdp * sequence * tensor
    for seed in range(20):
        processes = np.random.default_rng(seed).permutation(np.arange(count) // HOST)
        mesh = mesh_of(processes, shape)
        found = {number: own_rows(mesh, batch, number) for number in set(processes.tolist())}
        expected: dict[int, set[int]] = {number: set() for number in found}
        for d, f, s, t in itertools.product(*map(range, shape)):
            first = (d * fsdp + f) * each
            expected[mesh.devices[d, f, s, t].process_index] |= set(range(first, first + each))
        assert {number: rows.tolist() for number, rows in found.items()} == {
            number: sorted(rows) for number, rows in expected.items()
        }
        assert set().union(*expected.values()) == set(range(batch))


def test_a_torus_is_not_in_the_order_of_its_processes() -> None:
    """4 x 4 chips, row by row, of hosts that have 2 x 2: a host's rows are in two pieces."""
    x, y = np.divmod(np.arange(16), 4)
    mesh = mesh_of(2 * (x // 2) + y // 2, (16, 1, 1, 1))
    assert own_rows(mesh, 32, 0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert own_rows(mesh, 32, 3).tolist() == [20, 21, 22, 23, 28, 29, 30, 31]
    # Two along data, and all chips of a row and of its neighbour hold the same half.
    mesh = mesh_of(2 * (x // 2) + y // 2, (2, 1, 8, 1))
    assert [own_rows(mesh, 4, number).tolist() for number in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert own_rows(mesh, 4, 9).tolist() == []


def test_what_does_not_divide_is_told() -> None:
    mesh = mesh_of(np.arange(8) // HOST, (4, 1, 2, 1))
    for batch in (0, 6):
        with pytest.raises(UserError, match=f"^batch={batch}: expected a multiple of 4"):
            own_rows(mesh, batch, 0)


def test_one_process_has_all_rows() -> None:
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(4, 2, 3), "number": np.arange(4)}
    found = shard_batch(batch, make_mesh())
    assert own_rows(make_mesh(), 4).tolist() == [0, 1, 2, 3]
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name], array)


BATCH, SEED, EXAMPLES = 8, 5, 40
ORDERS = [
    ((4, 1, 1, 1), (0, 2, 1, 3)),
    ((2, 2, 1, 1), (2, 0, 1, 3)),
    ((1, 4, 1, 1), (3, 1, 2, 0)),
    ((2, 1, 2, 1), (0, 2, 1, 3)),
    ((1, 2, 1, 2), (2, 3, 0, 1)),
    ((1, 1, 2, 2), (0, 2, 1, 3)),
]
"""Shapes of a mesh over two processes with two devices each, and the order of its devices."""


class Squares:
    """A split of images of 2 x 2 pixels, each of its own number; it remembers which were asked for."""

    in_memory = True

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __len__(self) -> int:
        return EXAMPLES

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken += rows.tolist()
        return squares(rows)


def squares(rows: np.ndarray) -> np.ndarray:
    return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3))


def in_process() -> dict[str, Any]:
    """What one of two processes sees: whether all it holds is right, the rows that it has read, and digests."""
    join(seconds=100)
    assert jax.process_count() == 2 and len(jax.local_devices()) == 2
    words = TextStates(
        np.arange(EXAMPLES * 6, dtype=np.float32).reshape(EXAMPLES, 2, 3),
        np.arange(EXAMPLES, dtype=np.float32)[:, None],
    )
    run: Any = SimpleNamespace(batch=BATCH, seed=SEED)
    read, digests = [], []
    for shape, order in ORDERS:
        mesh = Mesh(np.array(jax.devices())[list(order)].reshape(shape), AXES)
        split = Squares()
        data = ImageData(split, {"words": words}, (), ())  # type: ignore[arg-type]
        stream = global_batches(run, data, 7, mesh)
        for step in (7, 8):
            split.taken.clear()
            found, rows = next(stream), batch_indices(EXAMPLES, BATCH, SEED, step)
            whole = {"image": squares(rows), "text": {"words": (words.tokens[rows], words.pooled[rows])}}
            for array, expected in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
                assert array.shape == expected.shape and array.dtype == expected.dtype
                assert len(array.addressable_shards) == 2
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(shard.data, expected[shard.index])
        read.append([rows.tolist().index(number) for number in split.taken])
        weights = {"block": {"kernel": np.arange(64, dtype=np.float32).reshape(8, 8), "bias": np.ones(3, np.float32)}}
        there = jax.tree.map(
            lambda leaf, to: jax.make_array_from_callback(leaf.shape, to, lambda piece: leaf[piece]),
            weights,
            state_shardings(weights, mesh),
        )
        digests.append(digest(there) == digest(weights))
    return {"read": read, "digests": digests}


@pytest.mark.slow
def test_two_processes_share_batches_on_meshes_that_mix_their_devices(processes: Processes) -> None:
    """Each device has the rows of its place in the mesh, and each process reads what its devices hold, once."""
    command = value_of("test_rows", "t.in_process()")
    ends = processes.ends([processes.start(command, {**fake_devices(2), **told}) for told in one_run(2)], 240.0)
    assert [end.code for end in ends] == [0, 0], ends
    first, second = (json.loads(end.out.splitlines()[-1]) for end in ends)
    assert all(first["digests"]) and all(second["digests"])
    for (shape, order), one, other in zip(ORDERS, first["read"], second["read"], strict=True):
        blocks = np.array(order).reshape(shape[0] * shape[1], -1) // 2
        for number, rows in enumerate((one, other)):
            held = [bool((block == number).any()) for block in blocks]
            assert rows == [row for row in range(BATCH) if held[row * len(blocks) // BATCH]], (shape, order)
