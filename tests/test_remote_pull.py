"""What is fetched from a URL and written there: many at once, no more than is needed, and what lies there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from benchmarks.remote_pull import Served, served
from launch.hold import locked
from launch.places import Places
from launch.status import status_rows
from launch.studies import load_study
from mmdit_jax import copies as module
from mmdit_jax.copies import pull, push_all
from mmdit_jax.lease import lease
from mmdit_jax.remote import MIRRORS, Remote, get_all, open_root
from mmdit_jax.training.events import EventLog

pytest_plugins = ["stores"]

only_s3 = pytest.mark.parametrize("url", ["s3"], indirect=True)
RUNS = 40


@pytest.fixture
def here(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This host's folder for it."""
    monkeypatch.setenv(MIRRORS, str(tmp_path / "mirrors"))
    return open_root(url)


def asked() -> list[Served]:
    """What the server was asked for since the last call."""
    return served(os.environ["AWS_ENDPOINT_URL"])


def fetched(requests: list[Served]) -> list[tuple[str, int]]:
    """(Run and file, bytes) of the objects among them; a listing is no object."""
    return [("/".join(item.path.split("/")[-2:]), item.sent) for item in requests if item.path.count("/") > 2]


@only_s3
def test_what_changed_is_fetched_at_once_and_nothing_else(url: str, here: Path) -> None:
    place = Remote(url)
    for number in range(RUNS):
        (place / f"run{number}" / "config.json").put(b'{"n": %d}' % number)
        (place / f"run{number}" / "events.jsonl").put(b"first\n" * 1000)
    asked()
    pull(here)
    requests = asked()
    assert len(requests) == 1 + 2 * RUNS and max(item.at_once for item in requests) >= 8
    assert all((here / f"run{n}" / "config.json").read_bytes() == b'{"n": %d}' % n for n in range(RUNS))
    pull(here)
    assert len(asked()) == 1  # the listing
    (place / "run3" / "config.json").put(b'{"n": 7}')  # of the same size
    (place / "run4" / "events.jsonl").put(b"first\n" * 1000 + b"second\n")
    asked()
    pull(here)
    requests = asked()
    assert len(requests) == 3 and sorted(fetched(requests)) == [("run3/config.json", 8), ("run4/events.jsonl", 7)]
    assert (here / "run3" / "config.json").read_bytes() == b'{"n": 7}'
    assert (here / "run4" / "events.jsonl").read_bytes() == b"first\n" * 1000 + b"second\n"
    (here / "run5" / "config.json").write_bytes(b'{"n": X}')  # here, of the same size
    pull(here / "run5")
    assert (here / "run5" / "config.json").read_bytes() == b'{"n": 5}'


@pytest.mark.parametrize("ours", [False, True])
def test_events_that_do_not_go_on_from_those_here_are_fetched_whole(url: str, here: Path, ours: bool) -> None:
    """An attempt was killed here before its last line was at the URL, and another host has gone on."""
    (here / "run").mkdir()
    path, there = here / "run" / "events.jsonl", Remote(url) / "run" / "events.jsonl"
    path.write_bytes(b"first\nkilled here\n")
    there.put(b"first\nwent on there\nand on\n")
    pull(here, ours=ours)
    assert path.read_bytes() == b"first\nwent on there\nand on\n"
    path.write_bytes(b"first\nwent on there\nand on\nahead of the URL\n")
    pull(here)
    assert path.read_bytes().endswith(b"ahead of the URL\n")
    pull(here, ours=True)
    assert path.read_bytes() == b"first\nwent on there\nand on\n"
    path.write_bytes(b"first\nwent ON there\nand on\n")  # of the same size
    pull(here, ours=True)
    assert path.read_bytes() == b"first\nwent on there\nand on\n"


def test_events_that_a_live_run_writes_here_are_left_alone(url: str, here: Path) -> None:
    """Of hosts that share the folder one sees the file as it was."""
    (here / "run").mkdir()
    path, lock = here / "run" / "events.jsonl", here / "run" / "lock"
    path.write_bytes(b"first\n")
    (Remote(url) / "run" / "events.jsonl").put(b"first\nsecond\n")
    with path.open("ab") as run, lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pull(here)
        run.write(b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"
    path.write_bytes(b"first\n")
    pull(here)  # nobody has it any more
    assert path.read_bytes() == b"first\nsecond\n"


def test_what_is_deleted_or_replaced_after_it_was_listed(url: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Remote(url) / "run"
    (here / "run").mkdir()
    (here / "run" / "more.jsonl").write_bytes(b"one\n")
    for name in ("config.json", "result.json", "events.jsonl"):
        (place / name).put(b"short\n")
    (place / "more.jsonl").put(b"one\ntwo\n")
    listing = Remote.listing

    def and_then(remote: Remote) -> object:
        found = listing(remote)
        (place / "config.json").delete()
        (place / "more.jsonl").delete()
        (place / "result.json").put(b"longer than it was when listed")
        return found

    monkeypatch.setattr(Remote, "listing", and_then)
    pull(here)
    assert sorted(path.name for path in (here / "run").iterdir()) == ["events.jsonl", "more.jsonl", "result.json"]
    assert (here / "run" / "result.json").read_bytes() == b"longer than it was when listed"
    assert (here / "run" / "more.jsonl").read_bytes() == b"one\n"


def test_bytes_under_way_are_bounded(url: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files one after another where two are more than may be in memory at once."""
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    contents = {f"{number}.png": bytes([65 + number]) * size for number, size in enumerate((4, 6, 7, 30, 0, 1))}
    batches = list(module._batches(contents, lambda name: len(contents[name])))
    assert [[len(contents[name]) for name in batch] for batch in batches] == [[4, 6], [7], [30], [0, 1]]
    (here / "run" / "samples").mkdir(parents=True)
    for name, content in contents.items():
        (here / "run" / "samples" / name).write_bytes(content)
    push_all(here / "run")
    for path in (here / "run" / "samples").iterdir():
        path.unlink()
    pull(here)
    assert {path.name: path.read_bytes() for path in (here / "run" / "samples").iterdir()} == contents


@only_s3
def test_many_are_written_at_once_and_the_result_last(url: str, here: Path) -> None:
    names = ("config.json", "result.json", *(f"samples/{number}.png" for number in range(RUNS)))
    for name in names:
        (here / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "run" / name).write_bytes(name.encode())
    asked()
    push_all(here / "run")
    requests = asked()
    assert sorted(Remote(f"{url}/run").listing()) == sorted(names)
    assert max(item.at_once for item in requests) >= 8
    *before, last = requests
    assert last.path.endswith("/result.json") and last.at_once == 1 and len(before) == 1 + RUNS


def test_who_holds_a_run_is_not_copied(url: str, here: Path) -> None:
    """A copy of a lease, written back later, would give the run away while its holder is at it."""
    place = Remote(url) / "run" / "lease.json"
    (here / "run").mkdir()
    with lease(place, "run"):
        held = place.get()
        pull(here)
        assert not (here / "run" / "lease.json").exists()
        (here / "run" / "lease.json").write_bytes(b"of another time")
        push_all(here / "run")
        assert place.get() == held


def test_no_more_than_a_command_asks_for(url: str, here: Path) -> None:
    for name in ("run/events.jsonl", "run/samples/a.png", "run/samples/events.jsonl", "jobs/engines.json", "jobs/x"):
        (Remote(url) / name).put(b"x")
    pull(here, only=("events.jsonl", "engines.json"))
    found = sorted(path.relative_to(here).as_posix() for path in here.rglob("[a-z]*.*"))
    assert found == ["jobs/engines.json", "run/events.jsonl", "run/samples/events.jsonl"]


@only_s3
def test_what_a_console_makes_for_a_folder_is_no_file(url: str, here: Path) -> None:
    place = Remote(url)
    (place / "run" / "config.json").put(b"{}")
    for name in ("", "run/"):
        place.files.call_s3("put_object", Bucket="bucket", Key=f"{place.path.split('/', 1)[1]}/{name}", Body=b"")
    assert list(place.listing()) == ["run/config.json"]
    pull(here)
    pull(here)
    assert (here / "run" / "config.json").read_bytes() == b"{}"


def test_several_objects(url: str) -> None:
    place = Remote(url)
    (place / "a").put(b"one")
    assert get_all([place / "a", place / "b", place / "a"]) == [b"one", None, b"one"] and get_all([]) == []


@only_s3
def test_status_asks_for_the_state_of_all_runs_at_once(url: str, here: Path, tiny_study: Path) -> None:
    """One listing, what it lists of events and results, and the leases of the runs that are not done."""
    study = load_study(str(tiny_study))
    places = Places(here, study.name, here / "_data")
    first, second = (places.run_dir(run) for run in study.runs)
    for folder in (first, second):
        folder.mkdir(parents=True)
        events = EventLog(folder)
        events.write("attempt", attempt=1, began=0.0, processes=1, host="a", job=None, durable=True)
        events.close()
        (Remote(url) / study.name / folder.name / "samples" / "a.png").put(b"x")
        (folder / "events.jsonl").unlink()
    asked()
    with lease(Remote(f"{url}/{study.name}/{first.name}/lease.json"), "run"):
        asked()
        rows = status_rows(study.runs, places)
        requests = asked()
        assert locked([first, second]) == {first}
    assert [row["state"] for row in rows] == ["running", "stopped"]
    names = [f"{folder.name}/{name}" for folder in (first, second) for name in ("events.jsonl", "lease.json")]
    assert sorted(name for name, _ in fetched(requests)) == sorted(names) and len(requests) == 5
    assert not (first / "samples").exists()
