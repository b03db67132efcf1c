"""How images are drawn: the method, its steps, and guidance."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from mmdit_jax.diffusion.forms import SHIFT_MAX, SHIFT_MIN
from mmdit_jax.errors import UserError, unknown

METHODS = ("euler", "heun", "dpm++2m")
VARIABLES = ("straight", "path")
SCHEDULES = ("once", "twice")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _require_number(name: str, value: Any) -> None:
    if not _is_number(value):
        raise UserError(f"{name}={value!r}: expected a number")


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and its guidance. ``dataclasses.replace`` varies it."""

    steps: int = 24
    """Steps; Heun evaluates the network twice in each but the last, the others once."""
    guidance: float = 4.0
    """Classifier-free guidance; 1 is none, at half the work."""
    method: str = "euler"
    """``euler``, ``heun`` (second order, Karras et al. 2022, algorithm 1) or ``dpm++2m`` (second-order multistep, Lu et
    al. 2022, arXiv 2211.01095, algorithm 2)."""
    shift: float | None = None
    """α of the resolution shift of the steps (equation 23); none: that of the formulation it was trained under."""
    shift_applied: str = "once"
    """``once``; ``twice`` repeats what both public reference samplers do, for parity with them only."""
    variables: str = "straight"
    """What a step is straight in. ``straight``: y = z/(a + b) over equidistant levels b/(a + b), so that every
    formulation visits the same log-SNRs. ``path``: the path's own z over its own equidistant t (for EDM over σ)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Levels between which guidance acts (Kynkäänniemi et al. 2024, arXiv 2404.07724); without it outside."""
    rescale: float = 0.0
    """Share φ of the guided output's deviation that is set back to the conditional one's (Lin et al. 2024, arXiv
    2305.08891, section 3.4). Of the network's raw output, so one φ does not mean the same for ε, v, F and velocity."""

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("method", self.method, METHODS),
            ("variables", self.variables, VARIABLES),
            ("shift_applied", self.shift_applied, SCHEDULES),
        ):
            if value not in valid:
                unknown(name, value, valid)
        for name in ("guidance", "rescale", *(("shift",) if self.shift is not None else ())):
            _require_number(name, vars(self)[name])
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UserError(f"steps={self.steps!r}: expected a whole number, 1 or more")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise UserError(f"guidance={self.guidance}: expected a finite number, 0 or more (1 for none)")
        if self.shift is not None and not SHIFT_MIN <= self.shift <= SHIFT_MAX:
            raise UserError(f"shift={self.shift}: expected {SHIFT_MIN:g} to {SHIFT_MAX:g} (1 for none)")
        if self.shift_applied == "twice" and self.variables == "path":
            raise UserError("shift_applied='twice': reference samplers step in levels: use variables='straight'")
        # as floats, since 5 and 5.0 are the same sampler and must give the same run id
        for name in ("guidance", "shift", "rescale"):
            if vars(self)[name] is not None:
                object.__setattr__(self, name, float(vars(self)[name]))
        levels = self.interval
        pair = isinstance(levels, (tuple, list)) and len(levels) == 2 and all(map(_is_number, levels))
        if not pair or not 0 <= levels[0] < levels[1] <= 1:
            raise UserError(f"interval={levels!r}: expected two levels, 0 <= low < high <= 1")
        object.__setattr__(self, "interval", tuple(float(x) for x in levels))
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale={self.rescale}: expected 0 to 1")

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated, both sides of guidance counted as one."""
        return 2 * self.steps - 1 if self.method == "heun" else self.steps

    @property
    def label(self) -> str:
        """A short name, as ``euler-50-g5``, with whatever else is not the default."""
        parts = [self.method, str(self.steps), f"g{self.guidance:g}"]
        parts += [f"shift{self.shift:g}"] if self.shift is not None else []
        parts += ["twice"] if self.shift_applied == "twice" else []
        parts += ["path"] if self.variables == "path" else []
        parts += ["i{:g}-{:g}".format(*self.interval)] if self.interval != (0.0, 1.0) else []
        parts += [f"r{self.rescale:g}"] if self.rescale else []
        return "-".join(parts)
