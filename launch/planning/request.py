"""What a plan is asked for, and the key under which its answer is kept."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import mmdit_jax
from launch.planning.target import Target
from mmdit_jax.config import Run
from mmdit_jax.config_values import to_dict
from mmdit_jax.diffusion import formulation
from mmdit_jax.versions import versions

PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt", "qwix")
"""What an answer depends on."""


@dataclass(frozen=True)
class Request:
    """A program to compile for a target."""

    run: Run
    target: Target
    sampling: bool = False
    """Drawing ``run.batch`` images on one device, instead of a training step on all."""

    @property
    def key(self) -> str:
        """The same for requests with the same answer: config, target, versions and source."""
        config = to_dict(self.run)
        for name in ("name", "seed", "steps", "validate_every", "evaluation"):
            del config[name]
        # Formulations of a family are one program.
        config["formulation"] = str(jax.tree.structure(formulation(self.run.formulation)))
        told = [config, self.target.name, self.sampling, versions(PACKAGES), source()]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]


# What makes the programs, and what reads them; the rest of the package does not change an answer.
_CODE = (
    *(
        "models",
        "diffusion",
        "training",
        "*sharding.py",
        "chips.py",
        "config.py",
        "host.py",
        "evaluation/text_to_image.py",
        "evaluation/sampling.py",
    ),
    *(
        f"../launch/planning/{name}*.py"
        for name in ("child", "request", "target", "lower", "gpu", "measure", "hlo", "col", "links", "roof")
    ),
)


def code() -> list[Path]:
    """The files that an answer depends on."""
    files, root = [], Path(mmdit_jax.__file__).parent
    for pattern in _CODE:
        found = sorted((root / pattern).rglob("*.py") if (root / pattern).is_dir() else root.glob(pattern))
        if not found:
            raise RuntimeError(f"{pattern}: no such code")
        files += found
    return files


@functools.cache
def source() -> str:
    """A hash of ``code``."""
    digest = hashlib.sha256()
    for path in code():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def described(request: Request) -> dict[str, Any]:
    """The request as a plan tells it."""
    hardware, model = request.run.hardware, request.run.model
    return {
        "topology": request.target.name,
        "depth": model.depth,
        "batch": request.run.batch,
        "latent": request.run.data.resolution,
        "mesh": {name: vars(hardware)[name] for name in ("fsdp", "sequence", "tensor")},
        "remat": model.remat,
        "accumulation": hardware.accumulation,
    }
