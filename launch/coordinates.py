"""``mmdit coordinates``: the coordinate check of a study's model, standard beside muP, over widths and over depths.

The study's first run under muP gives model, base shape, data and optimizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from launch.runtime import add_study, data_folder
from launch.tables import EXIT_OK, check_out, command_parser, out_option, text_table
from mmdit_jax.config import Run, Study
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig

AT = (0, 1, 2, 4, 8, 16)
"""Steps after which activations are looked at. What starts at zero moves in the third step at last."""
SHOWN = ("condition", "image attention", "image MLP", "image stream", "text stream", "prediction")
PROBES = 8


@dataclass(frozen=True)
class Probe:
    """The input that activations are looked at with: always the same, whatever the model and the seed."""

    latents: Any
    t: Any
    context: Any
    pooled: Any


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "coordinates",
        "how activations and their change in the first steps go with width and depth, standard beside muP",
        "mmdit coordinates mup_small --widths 32 64 128 256 --depths 1 2 4 8 --out docs/results/mup_small",
    )
    add_study(parser)
    parser.add_argument("--widths", metavar="N", type=int, nargs="+", default=[], help="at the base's depth")
    parser.add_argument("--depths", metavar="N", type=int, nargs="+", default=[], help="at the base's width")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="0 to N - 1 (%(default)s)")
    parser.add_argument("--steps", metavar="N", type=int, default=AT[-1], help="of training (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    out_option(parser)
    parser.set_defaults(run=run_coordinates)


def run_coordinates(args: argparse.Namespace) -> int:
    """Train each model for some steps; print the slopes of what lies in them."""
    from launch.studies import load_study
    from mmdit_jax.training.data import training_data
    from mmdit_jax.training.program import Solo, mesh_of
    from scaling.coordinates import coordinate_figure, slopes

    check_out(args.out)
    run = first(load_study(args.study, args.overrides))
    if args.seeds < 1 or args.steps < 1:
        raise UserError(f"seeds={args.seeds}, steps={args.steps}: expected 1 or more of each")
    ways = {x: values for x, values in (("width", args.widths), ("depth", args.depths)) if values}
    for x, values in ways.items():
        if len(set(values)) < 2:
            raise UserError(f"{x}s={values}: expected 2 or more to compare")
    if not ways:
        raise UserError("widths, depths: neither given; say which to compare")
    models = {x: list(shapes(run, x, values)) for x, values in ways.items()}
    for model in itertools.chain(*models.values()):
        Solo(dataclasses.replace(run, model=model), mesh_of(run))  # refuses a batch or heads that do not divide
    data = training_data(run, data_folder(args))
    batches = {seed: list(itertools.islice(data.batches(run.batch, seed, 0), args.steps)) for seed in range(args.seeds)}
    probe = make_probe(run, next(data.batches(PROBES, args.seeds, 0)))
    found = []
    for x, own in models.items():
        rows = [row for model in own for row in watched(run, model, batches, probe)]
        table = pd.DataFrame(rows).assign(varied=x)
        found.append(table)
    lines = [slopes(table, x) for x, table in zip(models, found, strict=True)]
    told = pd.concat([pd.DataFrame(own).assign(x=x) for x, own in zip(models, lines, strict=True)])
    if args.out is not None:
        from scaling.look import save

        for x, table in zip(models, found, strict=True):
            shown = [place for place in SHOWN if place in set(table["place"])]
            save(coordinate_figure(table, x, shown), args.out, f"coordinates_{x}")
        pd.concat(found).to_csv(args.out / "coordinates.csv", index=False, float_format="%.6g")
        told.to_csv(args.out / "slopes.csv", index=False, float_format="%.4f")
    if args.json:
        print(json.dumps({"rows": told.astype(object).where(told.notna(), None).to_dict("records")}))
        return EXIT_OK
    print(text_table(_text(told)))
    print(f"slopes after {args.steps} steps: 0 is flat, 1 proportional; 95 % by Student's t over {args.seeds} seeds")
    return EXIT_OK


def first(study: Study) -> Run:
    """The first run under muP, whose base shape is varied.

    Raises:
      UserError: there is none.
    """
    found = next((run for run in study.runs if run.model.parametrization == "mup"), None)
    if found is None:
        raise UserError(f"study={study.name!r}: no run with parametrization='mup', whose base shape could be varied")
    return found


def shapes(run: Run, x: str, values: Sequence[int]) -> Iterator[MMDiTConfig]:
    """The run's model under both parametrizations, ``x`` ("width" or "depth") varied from the base's shape.

    Raises:
      UserError: a shape is none.
    """
    base = run.model
    assert base.base_width is not None and base.base_depth is not None
    for kind, value in itertools.product(("standard", "mup"), values):
        width, depth = (value, base.base_depth) if x == "width" else (base.base_width, value)
        if width < 1 or width % base.head_size:
            raise UserError(f"widths={width}: expected a multiple of head_size={base.head_size}")
        own: dict[str, Any] = {} if kind == "mup" else {"base_width": None, "base_depth": None}
        heads = width // base.head_size
        yield dataclasses.replace(base, parametrization=kind, depth=depth, heads=heads, **own)


def make_probe(run: Run, batch: Mapping[str, Any]) -> Probe:
    """Noised images of a batch of the data, times evenly spread, all text there."""
    import jax
    import jax.numpy as jnp

    from mmdit_jax.diffusion import formulation
    from mmdit_jax.models.text import assemble
    from mmdit_jax.training.clean import clean

    key, noise_key = jax.random.split(jax.random.key(0))
    x0 = clean(batch, lambda shape: jax.random.normal(key, shape))
    f, count = formulation(run.formulation), len(x0)
    t = (jnp.arange(count) + 0.5) / count
    a, b = (value.reshape(-1, 1, 1, 1) for value in (f.a(t), f.b(t)))
    keep = {name: jnp.ones(count, bool) for name in batch["text"]}
    context, pooled = assemble(batch["text"], keep, layout=run.data.text_layout)
    return Probe(a * x0 + b * jax.random.normal(noise_key, x0.shape), t, context, pooled)


def watched(
    run: Run, model: MMDiTConfig, batches: Mapping[int, Sequence[Any]], probe: Probe
) -> Iterator[dict[str, Any]]:
    """Rows of the table of ``scaling.coordinates`` for one model: trained on each seed's batches, without a warm-up.

    The rate is constant, so that the run's length does not matter: at the first steps what it is later does. The
    devices are laid out by the run's hardware.
    """
    import jax

    from mmdit_jax.diffusion import formulation
    from mmdit_jax.models.watch import activations
    from mmdit_jax.training.program import mesh_of, step_of
    from mmdit_jax.training.state import init_state

    optimizer = dataclasses.replace(run.optimizer, warmup_steps=0, schedule="constant")
    changed = dataclasses.replace(run, model=model, optimizer=optimizer)
    steps, mesh, f = len(next(iter(batches.values()))), mesh_of(run), formulation(run.formulation)
    step = step_of(changed, mesh)

    @jax.jit
    def look(params: Any) -> dict[str, jax.Array]:
        return activations(model, params, probe.latents, probe.t, probe.context, probe.pooled)

    for seed, stream in batches.items():
        state = init_state(model, optimizer, run.steps, seed, mesh, run.hardware.offload)
        start = jax.device_get(look(state.params))
        for done in range(steps + 1):
            if done in (*AT, steps):
                for place, value in jax.device_get(look(state.params)).items():
                    yield {
                        "parametrization": model.parametrization,
                        "width": model.width,
                        "depth": model.depth,
                        "seed": seed,
                        "step": done,
                        "place": place,
                        "activation": _rms(value),
                        "change": _rms(value - start[place]),
                    }
            if done < steps:
                state, _ = step(state, stream[done], f, seed)


def _rms(value: Any) -> float:
    return float((value.astype("float32") ** 2).mean() ** 0.5)


def _text(told: pd.DataFrame) -> pd.DataFrame:
    """A row a place and quantity, a column a parametrization."""
    told = told.assign(
        text=[
            f"{row.slope:+.2f}" + (f" ({row.low:+.2f} to {row.high:+.2f})" if row.low == row.low else "")
            for row in told.itertuples()
        ]
    )
    wide = told.pivot(index=["x", "quantity", "place"], columns="kind", values="text").fillna("–").reset_index()
    order = [name for name in ("standard", "mup") if name in wide]
    return wide.rename(columns={"x": "over"})[["over", "quantity", "place", *order]]
