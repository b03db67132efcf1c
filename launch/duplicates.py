"""``mmdit data duplicates SOURCE``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launch.encode import SOURCES, add_source, data_dir_of, source_options
from launch.runtime import add_places
from mmdit_jax.data.duplicates import DISTANCE, check_distance
from mmdit_jax.data.encode.progress import Progress
from mmdit_jax.errors import UserError


def add_duplicates(actions: Any) -> None:
    """Register ``duplicates``."""
    text = "find exact and near duplicates among images"
    example = "example: mmdit data duplicates photos --report duplicates.html"
    action = actions.add_parser("duplicates", help=text, description=text, epilog=example)
    action.add_argument("source", metavar="SOURCE", help=SOURCES)
    add_places(action)
    add_source(action)
    action.add_argument("--distance", type=int, default=DISTANCE, help="bits of 64 (default: %(default)s)")
    action.add_argument("--report", type=Path, metavar="FILE", help=".html with pictures, or .json with all groups")
    action.add_argument("--quiet", action="store_true", help="no progress on stderr")
    action.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    action.set_defaults(run=find_duplicates)


def find_duplicates(args: argparse.Namespace) -> int:
    """Scan, look for duplicates, tell, and write a report if asked for."""
    from mmdit_jax.data import duplicates_report
    from mmdit_jax.data.encode.job import Job, Place
    from mmdit_jax.data.encode.scan import scans_folder
    from mmdit_jax.data.encode.workers import threads_each
    from mmdit_jax.data.sources import Unreadable, open_source
    from mmdit_jax.data.sources.images import decode
    from mmdit_jax.files import write_atomic, write_json
    from mmdit_jax.host import sigterm_noted

    if args.report and args.report.suffix not in (".html", ".json"):
        raise UserError(f"report={args.report}: expected a name that ends in .html or .json")
    check_distance(args.distance)  # before the scan, which may take hours
    source = open_source(args.source, source_options(args))
    progress = Progress(args.quiet)
    folder = data_dir_of(args) / "_duplicates"
    with sigterm_noted() as stop:
        scan = Job(folder, source, Place(threads=threads_each(1)), stop, progress.report).scan()
    found = duplicates_report.find(scan, args.distance)
    told = duplicates_report.as_json(found, scan, args.distance)
    if args.report and args.report.suffix == ".json":
        write_json(args.report, told)
    elif args.report:

        def picture(item: int) -> Any:
            try:
                return decode(source.read(scan.entries[item]).image)
            except Unreadable as error:
                found_in = scans_folder(folder.parent, source)
                told = f"source: {scan.entries[item].key} has changed since it was scanned ({error})"
                raise UserError(f"{told}; delete {found_in} and run again") from None

        write_atomic(args.report, duplicates_report.page(found, scan, source.name, args.distance, picture))
    print(
        json.dumps({**told, "exact": len(found.exact), "near": len(found.near)})
        if args.json
        else duplicates_report.summary(found)
    )
    if args.report:
        print(args.report, file=sys.stderr if args.json else sys.stdout)
    return 0
