"""The machine that a plan is for: a TPU topology that libtpu knows, in one or more slices, or nodes of GPUs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mmdit_jax.chips import CHIPS, Chip
from mmdit_jax.errors import UserError, nearest
from mmdit_jax.host import GPU_SHARE

MOST_DEVICES = 2**17
"""Beyond that nothing is planned: more than any machine has."""
EXAMPLES = "v5p:8x8x4, v6e:16x16, tpu7x:4x4x4, 2*v5e:16x16 (two slices), h100:16x8 (nodes x GPUs)"


@dataclass(frozen=True)
class Target:
    """Devices of one kind, and how they are joined."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis of a slice's torus; (nodes, GPUs a node)."""
    slices: int = 1

    @property
    def name(self) -> str:
        """As ``parse`` takes it."""
        once = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return once if self.slices == 1 else f"{self.slices}*{once}"

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return math.prod(self.shape) * self.slices * self.chip.devices_per_chip

    @property
    def usable_bytes(self) -> float:
        """Of a device's memory, what programs may fill: on a GPU, CUDA's context, NCCL and cuDNN have the rest."""
        return self.chip.hbm_bytes * (1.0 if self.is_tpu else GPU_SHARE)

    @property
    def is_tpu(self) -> bool:
        """Whether it is a torus of TPUs, else nodes of GPUs."""
        return self.chip.platform == "tpu"


def parse(text: str) -> Target:
    """The target by its name, as ``v5p:8x8x4``, ``2*v5e:16x16`` or ``h100:16x8``.

    Raises:
      UserError: it is written otherwise, the chip is unknown (the message has the nearest name), or no pod of it has
        such a shape.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z0-9]+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology={text!r}: expected CHIP:SHAPE, as {EXAMPLES}")
    names = [chip.name for chip in CHIPS]
    name = found[2].lower()
    shape, slices = tuple(int(size) for size in found[3].split("x")), int(found[1] or 1)
    chip = next(chip for chip in CHIPS if chip.name == (name if name in names else nearest(name, names)))
    if chip.name != name:
        near = Target(chip, shape if _why_no_shape(chip, shape) is None else chip.largest, slices).name
        raise UserError(f"topology={text!r}: no such chip; did you mean {near!r}? (has: {', '.join(names)})")
    if slices < 1 or min(shape) < 1:
        raise UserError(f"topology={text!r}: expected sizes of 1 or more, as {EXAMPLES}")
    if chip.platform != "tpu" and len(shape) != 2:
        raise UserError(f"topology={text!r}: expected NODES x GPUS, as {name}:16x8")
    if chip.platform != "tpu" and slices > 1:
        raise UserError(f"topology={text!r}: slices are of TPUs; write more nodes")
    reason = _why_no_shape(chip, shape)
    if reason is not None:
        raise UserError(f"topology={text!r}: {reason}")
    target = Target(chip, shape, slices)
    if target.devices > MOST_DEVICES:
        raise UserError(f"topology={text!r}: {target.devices:,} devices; expected {MOST_DEVICES:,} or less")
    return target


def _why_no_shape(chip: Chip, shape: tuple[int, ...]) -> str | None:
    """Why no pod has such a part; none where one may, and of GPUs."""
    largest = "x".join(map(str, chip.largest))
    if not largest:
        return None
    if len(shape) != len(chip.largest):
        return f"a {chip.name} has {len(chip.largest)} axes, as {chip.name}:{largest} (a whole pod)"
    if math.prod(shape) > math.prod(chip.largest) or (len(shape) == 2 and max(shape) > max(chip.largest)):
        return f"more than a pod; {chip.name}:{largest} is a whole one"
    return None
