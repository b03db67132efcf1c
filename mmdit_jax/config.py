"""One tree of frozen dataclasses that says everything about a run, and the id that follows from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmdit_jax.config_values import is_whole, require, require_positive, require_seed, to_dict
from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.errors import UserError, nearest, unknown
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.models.config import DTYPES
from mmdit_jax.models.text import LAYOUTS, TextShape, context_shape, text_encoder


@dataclass(frozen=True)
class DataConfig:
    """Which images and captions, and how their text is encoded."""

    name: str = "scenes"
    """A built-in set (``scenes``, ``signs``, ``signs_fixed``, ``emoji``), or the folder of an encoded one, by
    ``mmdit data encode``."""
    resolution: int = 32
    """Height and width in pixels; of an encoded set those of a square latent. Buckets of other shapes have its area."""
    examples: int = 32_768
    """Training examples of a procedural set; a fixed set (emoji) has its own number."""
    validation_examples: int = 256
    """Held-out captions and images for the validation loss."""
    text_encoders: tuple[str, ...] = ("words", "tower")
    text_drop: float = 0.464
    """Probability of dropping each encoder, independently (SD3: 0.464³ ≈ 10 % unconditional)."""
    text_layout: str = "channels"
    """How the encoders' token states lie in the context: ``channels``, all side by side, or ``sd3``, where those of
    encoders without a pooled state (T5) follow along the sequence."""
    text_shapes: tuple[tuple[str, int, int, int], ...] = ()
    """(name, length, width, pooled width) of the states that an encoded set brings, of encoders which the registry
    does not have in this shape."""

    def __post_init__(self) -> None:
        require_positive(self, "resolution", "examples", "validation_examples")
        object.__setattr__(self, "text_shapes", tuple(tuple(item) for item in self.text_shapes))
        for item in self.text_shapes:
            well_formed = len(item) == 4 and all(is_whole(value) and value >= 0 for value in item[1:])
            require(well_formed, "text_shapes", item, "(name, length, width, pooled width)")
            require(item[0] in self.text_encoders, "text_shapes", item, f"one of {self.text_encoders}")
        require(0 <= self.text_drop < 1, "text_drop", self.text_drop, "0 <= text_drop < 1")
        require(len(self.text_encoders) > 0, "text_encoders", self.text_encoders, "at least one encoder")
        if self.text_layout not in LAYOUTS:
            unknown("text_layout", self.text_layout, LAYOUTS)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, schedule, clipping and the moving average of the weights."""

    name: str = "adamw"
    """``adamw`` (the paper's) or ``muon`` (hidden matrices by Muon, the rest by AdamW)."""
    learning_rate: float = 1e-4
    """Peak rate."""
    adam_learning_rate: float | None = None
    """Rate of the AdamW part under ``muon``; none: the peak rate times 0.1."""
    warmup_steps: int = 1000
    schedule: str = "constant"
    """After the warm-up: ``constant`` (the paper's), ``cosine`` or ``linear`` to zero."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    """Per update of the average; early on min(decay, (1 + n) / (10 + n)), n the updates before."""
    ema_every: int = 1
    """Steps between updates of the average (the SD3 study of schedules: 0.99 every 100 steps)."""
    moments: str = "float32"
    """How the optimizer's moments are stored: ``bfloat16``, rounded at random, takes half of their memory."""
    ema_dtype: str = "float32"
    """How the moving average is stored: ``bfloat16``, rounded at random, takes half of its memory."""

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            unknown("optimizer.name", self.name, ("adamw", "muon"))
        if self.schedule not in ("constant", "cosine", "linear"):
            unknown("optimizer.schedule", self.schedule, ("constant", "cosine", "linear"))
        for name in ("moments", "ema_dtype"):
            if vars(self)[name] not in DTYPES:
                unknown(f"optimizer.{name}", vars(self)[name], DTYPES)
        given = () if self.adam_learning_rate is None else ("adam_learning_rate",)
        for name in ("learning_rate", "eps", "clip_norm", *given):
            value = vars(self)[name]
            number = is_whole(value) or isinstance(value, float)
            require(number and math.isfinite(value) and value > 0, f"optimizer.{name}", value, "a number above 0")
        for name in ("b1", "b2", "ema_decay"):
            value = vars(self)[name]
            require(0 <= value < 1, f"optimizer.{name}", value, f"0 <= {name} < 1")
        require_positive(self, "ema_every")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is generated from the finished run's weights, and scored."""

    prompts_per_task: int = 40
    """Prompts a GenEval task, of which there are six; a set without tasks: six times as many held-out captions."""
    images_per_prompt: int = 1
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Of these images, by the EMA weights."""
    seed: int = 0
    """Of prompts and noise: the same for every run of a study, so that battles are like against like."""
    at: str = "last"
    """Which weights are evaluated: those of the ``last`` step, or of the ``best`` one, which has the lowest EMA
    validation loss (the SD3 ranking protocol)."""
    settings: tuple[SamplerConfig, ...] = ()
    """Samplers under which EMA and raw weights are each scored against held-out images, by CLIP score and Fréchet
    distance: the settings that ``mmdit rank`` compares formulations in."""
    settings_images: int = 256
    """Held-out captions drawn in each of them, one image a caption."""
    without: tuple[tuple[str, ...], ...] = ()
    """Groups of text encoders to remove at inference: without each, the same images are drawn and compared with those
    of all encoders (SD3, Figure 9: how often images without T5 win)."""
    compbench_prompts: int = 0
    """Prompts a CompBench-shaped task, of which scenes have three, with images of their own; 0: not scored."""

    def __post_init__(self) -> None:
        require_positive(self, "prompts_per_task", "images_per_prompt", "settings_images")
        count = self.compbench_prompts
        require(is_whole(count) and count >= 0, "evaluation.compbench_prompts", count, "0 or more")
        if self.at not in ("last", "best"):
            unknown("evaluation.at", self.at, ("last", "best"))
        require_seed("evaluation.seed", self.seed)
        for name, items in (("sampler", (self.sampler,)), ("settings", tuple(self.settings))):
            for item in items:
                require(isinstance(item, SamplerConfig), f"evaluation.{name}", item, "a SamplerConfig(…)")
        object.__setattr__(self, "settings", tuple(self.settings))
        groups = tuple((group,) if isinstance(group, str) else tuple(group) for group in self.without)
        for group in groups:
            require(len(group) > 0, "evaluation.without", self.without, "names of encoders in each group")
            require(groups.count(group) == 1, "evaluation.without", group, "each group once")
        object.__setattr__(self, "without", groups)
        labels = [item.label for item in self.settings]
        for label in labels:
            require(labels.count(label) == 1, "evaluation.settings", label, "each sampler once")


SD3_SETTINGS: tuple[SamplerConfig, ...] = (
    *(SamplerConfig(steps=50, guidance=guidance) for guidance in (1.0, 2.5, 5.0)),
    *(SamplerConfig(steps=steps, guidance=5.0) for steps in (5, 10, 25)),
)
"""The SD3 ranking protocol's six samplers (section 5.1): with {EMA, raw} weights and two data sets, 24 settings."""


OFFLOADED = ("optimizer", "ema")


@dataclass(frozen=True)
class HardwareConfig:
    """How a run is laid out on devices. Not part of its id: the same run may move to another machine."""

    fsdp: int = 1
    """Devices over which parameters, EMA and optimizer state are sharded; the rest carry data."""
    sequence: int = 1
    """Devices over which an image's tokens are spread."""
    tensor: int = 1
    """Devices over which heads and the hidden channels of MLPs are spread."""
    accumulation: int = 1
    """Parts of a batch that are taken one after the other, their gradients added up: less memory for activations."""
    offload: tuple[str, ...] = ()
    """What lies in the host's memory between its uses: ``optimizer`` (its moments), ``ema`` (the moving average)."""
    onednn: bool = False
    """On an x86 CPU, matrix products by oneDNN: faster by a sixth at width 96. XLA can't keep programs compiled so
    for the next process, which costs seconds at a restart."""
    checkpoint_every: int = 1000
    """Steps between checkpoints (one more is always written at the end)."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        require_positive(self, "fsdp", "sequence", "tensor", "accumulation", "checkpoint_every", "keep_checkpoints")
        object.__setattr__(self, "offload", tuple(self.offload))
        for name in self.offload:
            if name not in OFFLOADED:
                unknown("hardware.offload", name, OFFLOADED)


@dataclass(frozen=True)
class Run:
    """One training run of a study. ``dataclasses.replace`` makes the next one."""

    name: str
    """Unique within its study; what tables and figures call it."""
    model: MMDiTConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    formulation: str = "rf"
    """Path, prediction, density and weight by the paper's name, e.g. ``rf/lognorm(0.00,1.00)``."""
    steps: int = 500_000
    batch: int = 4096
    """Images a step, over all devices."""
    seed: int = 0
    validate_every: int = 50_000
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "a name that is not empty")
        require_positive(self, "steps", "batch", "validate_every")
        require_seed("seed", self.seed)
        object.__setattr__(self, "formulation", formulation(self.formulation).name)
        require(
            self.batch % self.hardware.accumulation == 0, "batch", self.batch, "a multiple of hardware.accumulation"
        )
        if self.model.parametrization == "mup" and self.optimizer.name != "adamw":
            raise UserError(f"optimizer.name={self.optimizer.name!r}: parametrization='mup' has rules for 'adamw'")
        if self.evaluation.compbench_prompts and self.data.name != "scenes":
            raise UserError(
                f"evaluation.compbench_prompts={self.evaluation.compbench_prompts}: these prompts ask for scenes; "
                f"expected 0 with data.name={self.data.name!r}"
            )
        for group in self.evaluation.without:
            for encoder in group:
                if encoder not in self.data.text_encoders:
                    unknown("evaluation.without", encoder, self.data.text_encoders)
        widths = text_widths(self.data.text_encoders, self.data.text_layout, self.data.text_shapes)
        for field_name, value, expected in zip(
            ("context_dim", "pooled_dim"), (self.model.context_dim, self.model.pooled_dim), widths, strict=True
        ):
            require(value == expected, f"model.{field_name}", value, f"{expected}, as data.text_encoders give")

    @property
    def run_id(self) -> str:
        """``<name>-<hash>``: the hash covers the resolved config and the encoders' weights.

        Left out is what moves results by rounding only: hardware, rematerialisation, the kernel of the attention. (But
        blocks unrolled by ``scan=False``, as runs had that before.)
        """
        config = to_dict(self)
        del config["hardware"], config["model"]["attention"]
        config["model"]["remat"] = "none"
        config["model"]["scan"] = self.model.scan is not False
        for group, fields in ADDED_LATER.items():
            for field_name, before in fields.items():
                if config[group][field_name] == before:
                    del config[group][field_name]
        given = {item[0] for item in self.data.text_shapes}  # by shape alone: the set has their states
        config["text_fingerprints"] = [
            text_encoder(name).fingerprint for name in self.data.text_encoders if name not in given
        ]
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name).strip('-.') or 'run'}-{digest}"

    def train_flops(self, step: int | None = None) -> float:
        """FLOPs of training up to ``step`` (default: all), per-stream count; backward counted as twice the forward.

        Of an encoded set with several buckets: as if all latents were square.
        """
        size = self.data.resolution
        return self.step_flops(size, size)[0] * (self.steps if step is None else step)

    def train_flops_6nd(self, step: int | None = None) -> float:
        """The same by the 6·N·D convention, D the tokens of both streams."""
        size = self.data.resolution
        return self.step_flops(size, size)[1] * (self.steps if step is None else step)

    def step_flops(self, height: int, width: int) -> tuple[float, float]:
        """FLOPs of a training step on images or latents of these sides: by the per-stream count, and by 6·N·D."""
        shape = (height, width, context_tokens(self))
        return 3.0 * self.model.flops_per_image(*shape) * self.batch, float(self.model.flops_6nd(*shape)) * self.batch


ADDED_LATER: dict[str, dict[str, Any]] = {
    "model": {
        "position_base": None,
        "dual_attention": 0,
        "architecture": "mmdit",
        "text_split": 77,
        "parametrization": "standard",
        "base_width": None,
        "base_depth": None,
        "products": "full",
    },
    "data": {"text_layout": "channels", "text_shapes": []},
    "optimizer": {"moments": "float32", "ema_dtype": "float32"},
    "evaluation": {"without": [], "compbench_prompts": 0},
}
"""Fields that came after runs had been made, with what these runs were: such a run keeps its id."""


def context_tokens(run: Run) -> int:
    """Length of the text sequence that the run's encoders give."""
    shapes = text_shapes(run.data.text_encoders, run.data.text_shapes)
    return context_shape(shapes, run.data.text_layout).length


def text_widths(
    encoders: tuple[str, ...], layout: str = "channels", given: Sequence[tuple[str, int, int, int]] = ()
) -> tuple[int, int]:
    """(context_dim, pooled_dim) of a model fed by these encoders; ``given`` as ``DataConfig.text_shapes``.

    Raises:
      UserError: none of them gives a pooled state, without which an MMDiT is not conditioned on the text as a whole, or
        their token states do not fit the layout.
    """
    _, width, pooled = context_shape(text_shapes(encoders, given), layout)
    if not pooled:
        raise UserError(f"text_encoders={encoders!r}: none gives a pooled state; add one that does, as 'tower'")
    return width, pooled


def text_shapes(encoders: tuple[str, ...], given: Sequence[tuple[str, int, int, int]] = ()) -> dict[str, TextShape]:
    """The shape of each encoder's states: as given (``DataConfig.text_shapes``), else by the registry."""
    told = {name: TextShape(*shape) for name, *shape in given}
    found = {name: text_encoder(name) for name in encoders if name not in told}
    known = {name: TextShape(item.length, item.width, item.pooled_width) for name, item in found.items()}
    return {name: told.get(name) or known[name] for name in encoders}


@dataclass(frozen=True)
class Study:
    """A named grid of runs."""

    name: str
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(self.runs))
        require(
            bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name)),
            "study name",
            self.name,
            "letters, digits, . _ -",
        )
        require(len(self.runs) > 0, "runs", self.runs, "at least one run")
        seen: set[str] = set()
        for run in self.runs:
            require(run.name not in seen, "name", run.name, "each run of a study to have its own name")
            seen.add(run.name)

    def find(self, key: str) -> Run:
        """The run with this id or name."""
        for run in self.runs:
            if key in (run.run_id, run.name):
                return run
        names = [run.run_id for run in self.runs]
        raise UserError(f"run={key!r}: not in study {self.name!r}; did you mean {nearest(key, names)!r}?")
