"""``mmdit predict``: foretell the losses of runs before they start, and set the truth beside when they are done."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from launch.doubts import beyond, mixed, passes, repeated, unlike
from launch.execute import describe
from launch.fit import LAWS, column_options, fit, of_run, told_columns
from launch.places import Places, make_folder, read_result
from launch.runtime import TOLD, add_study, places_of
from launch.seeds import with_seeds
from launch.studies import load_study
from launch.tables import EXIT_OK, ends, on_host, text_table
from mmdit_jax import __version__
from mmdit_jax.config import Run, Study
from mmdit_jax.copies import pull
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic
from mmdit_jax.training.events import read_events
from scaling.law_kinds import KINDS
from scaling.predictions import (
    FILE,
    LOSS,
    added,
    law_name,
    parse,
    prediction,
    read_predictions,
    stored,
    table_digest,
    with_truth,
)
from scaling.tables import read_table, where
from scaling.units import matching

EXAMPLES = """examples:
  mmdit predict ladder_small --run "d7 1000 steps s0" --run "d7 1000 steps s1"    before they start: from what is done
  mmdit predict ladder_small --run "d7 1000 steps s0" --from results.csv --law power --floor
  mmdit predict ladder_small                                                      what was foretold, and what came
"""
LOCK = ".predictions.lock"
DEFAULT_LAW = "joint"
OF_FIT = ("table", "where", "law", "c", "n", "d", "tokens_per_image", "loss", "floor", "huber", "drop_highest")
"""Options that mean nothing without --run."""


def add_parsers(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "predict",
        help="foretell the loss of runs that have not begun, with an interval, in a file that is only added to",
        description="Fit a law to the runs that are done, and register the loss that it expects of runs that have not "
        f"begun, with an interval and the date, in ROOT/STUDY/{FILE}. Nothing there is ever replaced; the report sets "
        "the truth beside it. Without --run: what was foretold, and what came.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study(parser)
    parser.add_argument(
        "--run", dest="only", action="append", default=[], metavar="RUN", help="of this run; repeatable"
    )
    parser.add_argument("--from", dest="table", metavar="TABLE", help="fit to these rows (default: the study's runs)")
    parser.add_argument(
        "--where",
        metavar="COL=VALUE",
        action="append",
        default=[],
        help="only these rows (or !=, >=, <, …); repeatable",
    )
    parser.add_argument("--law", choices=LAWS, help=f"which ({DEFAULT_LAW})")
    column_options(parser)
    parser.add_argument("--drop-highest", metavar="K", type=int, default=0, help="leave out the K highest losses")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    untold = {name: parser.get_default(name) for name in OF_FIT}
    parser.set_defaults(run=run_predict, untold=untold, group=None, starts=100, resample="auto", bootstrap=0, seed=0)


def run_predict(args: argparse.Namespace) -> int:
    """Register and print, or print what is registered."""
    _check(args)
    on_host()
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    if args.only:
        make_folder(places.study_dir)
        records = foretell(args, study, places)
        told = with_truth(records, pd.DataFrame())
    else:
        records = read_predictions(places.study_dir)
        told = with_truth(records, done_runs(with_seeds(study, places), places))
    if args.json:
        rows = json.loads(told.to_json(orient="records"))
        print(json.dumps({"study": study.name, "predictions": rows, "records": records}))
        return EXIT_OK
    if not records:
        print(f"nothing foretold in {places.study_dir}; mmdit predict {args.study} --run RUN")
        return EXIT_OK
    print(text_table(shown(told)))
    if args.only:
        print("".join(f"{line}\n" for line in warnings(records)), end="")
        print(f"registered in {places.study_dir / FILE}")
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    given = [name for name in OF_FIT if vars(args)[name] != args.untold[name]]
    if given and not args.only:
        words = ", ".join("--from" if name == "table" else f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{words}: nothing is fitted without --run; expected --run RUN beside it, or STUDY alone")
    args.law = args.law or DEFAULT_LAW


def foretell(args: argparse.Namespace, study: Study, places: Places) -> list[dict[str, Any]]:
    """Fit, and add a line for each run of ``args.only``.

    Raises:
        UserError: a run that has begun or is among the rows.
        TableError: no law of the rows, a column that no run has, or a prediction that is there already.
    """
    runs = [study.find(key) for key in dict.fromkeys(args.only)]
    _require_not_begun(runs, places)
    table = where(done_runs(study.runs, places) if args.table is None else read_table(args.table), args.where)
    if table.empty:
        raise UserError(f"study={study.name!r}: no run is done; train some first, or give --from TABLE")
    _require_not_among(runs, table)
    kind = KINDS[args.law]
    rows = [describe(run) for run in runs]
    ats = [{x: of_run(row, args, x) for x in kind.abscissae} for row in rows]
    losses = matching(table, args.loss)
    if len(losses) > 1:
        raise UserError(f"loss={args.loss!r}: several columns; expected one")
    (loss,) = losses
    law = fit(table, args, args.law, loss)
    columns = told_columns(args, law, loss)
    used = [column["column"] for column in columns.values()]
    of_rows = {
        "study": study.name,
        "loss_column": loss,
        "columns": columns,
        "table_sha256": table_digest(table, used),
        "fitted_to": [str(name) for name in table["name"]] if "name" in table.columns else [],
        "version": __version__,
    }
    shared = repeated(table, used) + mixed(table)
    records: list[dict[str, Any]] = []
    for run, row, at in zip(runs, rows, ats, strict=True):
        doubts = [*shared, *beyond(law, at), *unlike(row, table), *passes(run, table, places.data)]
        records.append({**of_rows, **prediction(law, at), "run_id": run.run_id, "name": run.name, "doubts": doubts})
    with _alone(places.study_dir):
        path = places.study_dir / FILE
        # Since the fit began, others may have added lines, here or from another host, and a run may have begun.
        pull(places.study_dir, only=(*TOLD, FILE))
        _require_not_begun(runs, places)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        records = [{**record, "registered": now} for record in records]
        text = added(stored(places.study_dir), records)
        write_atomic(path, text)
        path.chmod(0o444)
    return parse(text)[-len(records) :]


def _require_not_begun(runs: Iterable[Run], places: Places) -> None:
    for run in runs:
        begun = next(iter(read_events(places.run_dir(run))), None)
        if begun is not None or read_result(places.run_dir(run)) is not None:
            raise UserError(f"run={run.name!r}: has begun; expected one that has not (a prediction comes before)")


def _require_not_among(runs: Iterable[Run], table: pd.DataFrame) -> None:
    """By id and by name: a table from elsewhere may lack ids, or hold the run as it was with other settings."""
    for run in runs:
        for column, mine in (("run_id", run.run_id), ("name", run.name)):
            if column in table.columns and (table[column].astype(str).str.strip() == mine).any():
                raise UserError(
                    f"run={run.name!r}: is among the rows that the law is fitted to ({column}={mine!r}); expected them "
                    f"without it, as by --where '{column}!={mine}'"
                )


def done_runs(runs: Iterable[Run], places: Places) -> pd.DataFrame:
    """A row a finished run, as in results.csv: what it is, and its last validation loss, in all and per bin of t."""
    rows = []
    for run in runs:
        result = read_result(places.run_dir(run))
        if result is not None:
            rows.append(_row(run, result))
    return pd.DataFrame(rows)


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    levels = {f"val_loss_{index}": value for index, value in enumerate(result["val_loss_levels"])}
    return {**describe(run), "val_loss": result["val_loss"], **levels}


def shown(told: pd.DataFrame) -> pd.DataFrame:
    """The table that is printed."""
    done = told["actual"].notna()
    several = (told["loss_column"] != LOSS).any()
    return pd.DataFrame(
        {
            "run": told["name"],
            **({"loss": told["loss_column"]} if several else {}),
            "law": [law_name(law, floor) for law, floor in zip(told["law"], told["floor"], strict=True)],
            "registered": told["registered"],
            "rows": told["rows"].astype(str),
            "predicted": [f"{value:.6g}" for value in told["predicted"]],
            f"{100 * told['level'].min():g} % interval": [
                ends(low, high) for low, high in zip(told["low"], told["high"], strict=True)
            ],
            "came": [f"{value:.6g}" if there else "" for value, there in zip(told["actual"], done, strict=True)],
            "error": [
                f"{100 * value:+.2f} %" if there else "" for value, there in zip(told["error"], done, strict=True)
            ],
            "inside": ["" if inside is None else "yes" if inside else "no" for inside in told["inside"]],
        }
    )


def warnings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know before these predictions, of one law, are relied on: each thing once, with the runs it is of."""
    found: dict[str, list[str]] = {}
    for record in records:
        for doubt in record["doubts"]:
            found.setdefault(doubt, []).append(record["name"])
    lines = [f"not identifiable: {reason}" for reason in records[0]["reasons"]]
    for doubt, names in found.items():
        whose = "" if len(names) == len(records) else f"{', '.join(names)}: "
        lines.append(f"before you rely on it: {whose}{doubt}")
    return lines


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time adds to the file."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
