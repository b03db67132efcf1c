"""Roots at URLs: a real S3-compatible server on loopback, fsspec's memory, and who may write there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from conftest import TINY_STUDY, fake_devices
from process_group import Processes, one_run

from mmdit_jax.copies import pull, push, push_all
from mmdit_jax.errors import Held, UserError
from mmdit_jax.lease import is_leased, lease
from mmdit_jax.remote import MIRRORS, Remote, location, open_root, remote_of
from mmdit_jax.training.events import EventLog, read_events

pytest_plugins = ["stores"]


def test_objects(url: str) -> None:
    """Whole, once, listed at once, gone when deleted."""
    place = Remote(url)

    def sizes() -> dict[str, int]:
        return {name: entry.size for name, entry in place.listing().items()}

    assert sizes() == {} and (place / "a").get() is None
    (place / "a").put(b"one")
    (place / "b" / "c").put(b"three")
    assert (place / "a").get() == b"one" and sizes() == {"a": 3, "b/c": 5}
    assert not (place / "a").create(b"two") and (place / "d").create(b"new")
    (place / "a").put(b"longer")
    assert sizes() == {"a": 6, "b/c": 5, "d": 3}
    (place / "a").delete()
    (place / "a").delete()
    assert (place / "a").get() is None and sorted(place.listing()) == ["b/c", "d"]


def test_of_many_who_create_one_does(url: str) -> None:
    place, won = Remote(url) / "x", []
    threads = [
        threading.Thread(target=lambda number=number: won.append(place.create(b"%d" % number))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_a_folder_stands_for_a_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go both ways, but for those that stay apart; another host's folder gets what is at the URL."""
    monkeypatch.setenv(MIRRORS, str(tmp_path / "one"))
    here = open_root(f"{url}/")
    run = here / "study" / "run"
    assert location(run) == f"{url}/study/run" and remote_of(tmp_path) is None and location(Path("/a")) == "/a"
    for name in ("config.json", "checkpoints/10/state", "samples/0/a.png", "lock", "result.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    push_all(run)
    assert sorted(Remote(f"{url}/study/run").listing()) == ["config.json", "result.json", "samples/0/a.png"]
    monkeypatch.setenv(MIRRORS, str(tmp_path / "two"))
    there = open_root(url)
    assert there != here
    pull(there / "study")
    copied = there / "study" / "run"
    assert (copied / "samples/0/a.png").read_text() == "samples/0/a.png" and not (copied / "checkpoints").exists()
    (copied / "result.json").write_text("RESULT.JSON")  # of the same size
    push(copied / "result.json")
    pull(run)
    assert (run / "result.json").read_text() == "RESULT.JSON"


def test_events_are_there_when_they_are_durable(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRRORS, str(tmp_path))
    run = open_root(url) / "run"
    run.mkdir()
    events, place = EventLog(run), Remote(f"{url}/run/events.jsonl")
    events.write("train", step=1)
    assert place.get() is None
    events.write("checkpoint", step=1, durable=True)
    content = place.get()
    assert content is not None and [json.loads(line)["event"] for line in content.splitlines()] == [
        "train",
        "checkpoint",
    ]
    events.write("train", step=2)
    pull(run)  # by another process of this host, say: nothing that is not there yet is lost
    events.write("train", step=3)
    events.close()
    assert [event["step"] for event in read_events(run)] == [1, 1, 2, 3]
    place.put((content or b"") * 9)
    pull(run)
    assert len(list(read_events(run))) == 18


def test_a_lease_is_held_renewed_and_taken_over(url: str) -> None:
    place = Remote(url) / "lease.json"
    assert not is_leased(place)
    with lease(place, "run", seconds=4.0):
        first = place.get()
        with pytest.raises(Held, match="another process is at it"), lease(place, "run", seconds=4.0):
            pass
        until = time.monotonic() + 20.0
        while place.get() == first and time.monotonic() < until:
            time.sleep(0.1)
        assert is_leased(place) and place.get() != first  # renewed
    assert not is_leased(place) and place.get() is None
    place.put(json.dumps({"owner": "somebody who was killed", "until": time.time() + 1.0}).encode())
    began = time.monotonic()
    with lease(place, "run", wait_seconds=20, seconds=10.0):
        assert time.monotonic() - began > 0.8
    place.put(b"no JSON")
    with lease(place, "run", seconds=10.0):
        assert is_leased(place)


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_holder_that_lost_its_lease_ends(url: str, processes: Processes) -> None:
    """In a process of its own, whose lease somebody else takes."""
    script = (
        "import sys, time; from mmdit_jax.lease import lease; from mmdit_jax.remote import Remote\n"
        "with lease(Remote(sys.argv[1]), 'run', seconds=4.0):\n    print('held', flush=True); time.sleep(60)"
    )
    place = Remote(url) / "lease.json"
    holder = processes.start([sys.executable, "-c", script, place.url], {})
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    place.put(json.dumps({"owner": "another", "until": time.time() + 60}).encode())
    (end,) = processes.ends([holder], 30.0)
    assert end.code == 160 and "somebody else has taken it" in end.err, end


def test_what_no_store_can_be_asked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRRORS, str(tmp_path))
    with pytest.raises(UserError, match=r"^root='nothing://"):
        pull(open_root("nothing://bucket/x"))


TRAIN = ("train", "tiny.py", "--run", "rf", "--quiet")


class Hosts:
    """Processes of hosts that share nothing but a store: each has its own folder for what stands for the URL."""

    def __init__(self, folder: Path, store: dict[str, str], cache: Path, processes: Processes) -> None:
        self._processes = processes
        self.folder, self.url = folder, f"s3://bucket/{uuid.uuid4().hex}"
        (folder / "tiny.py").write_text(TINY_STUDY)
        own = {"JAX_COMPILATION_CACHE_DIR": str(cache), "MMDIT_HEARTBEAT_SECONDS": "20"}
        self.environment = {**fake_devices(1), **store, **own}

    def start(self, host: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launch.cli", *words, "--root", self.url]
        own = {MIRRORS: str(self.folder / host), **variables}
        return self._processes.start(command, {**self.environment, **own}, self.folder)

    def together(self, count: int, *words: str) -> list[subprocess.Popen[str]]:
        return [self.start(f"host{number}", *words, **told) for number, told in enumerate(one_run(count))]

    def events(self) -> list[dict[str, object]]:
        """As they are at the URL."""
        found = [name for name in Remote(self.url).listing() if name.endswith("events.jsonl")]
        content = (Remote(self.url) / found[0]).get() if found else None
        return [json.loads(line) for line in (content or b"").splitlines()]

    def result(self) -> dict[str, object]:
        (name,) = (name for name in Remote(self.url).listing() if name.endswith("result.json"))
        content = (Remote(self.url) / name).get()
        assert content is not None
        found: dict[str, object] = json.loads(content)
        return found


@pytest.fixture
def hosts(
    tmp_path: Path,
    store: dict[str, str],
    compile_cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> Hosts:
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    return Hosts(tmp_path, store, compile_cache, processes)


@pytest.mark.slow
def test_a_run_on_s3_goes_on_on_another_host(hosts: Hosts, mmdit, processes: Processes) -> None:
    """Killed on one host, finished on another: same bits as on a disk. Tables come from the URL alone."""
    assert mmdit(*TRAIN).returncode == 0
    (expected,) = ((path / "result.json").read_bytes() for path in (mmdit.folder / "studies" / "tiny").glob("rf-*"))
    first = hosts.start("first", *TRAIN)
    # The second is begun when the first is finished.
    processes.until([first], lambda: sum(event["event"] == "checkpoint" for event in hosts.events()) >= 2)
    first.kill()
    (killed,) = processes.ends([first])
    assert killed.code == -signal.SIGKILL, killed
    (refused,) = processes.ends([hosts.start("second", *TRAIN)])
    assert refused.code == 2 and "another process is at it" in refused.err, refused  # its lease is not over yet
    (name,) = (name for name in Remote(hosts.url).listing() if name.endswith("lease.json"))
    (Remote(hosts.url) / name).delete()  # as it would be after a while
    (second,) = processes.ends([hosts.start("second", *TRAIN)], 240.0)
    assert second.code == 0, second
    steps = [event["step"] for event in hosts.events() if event["event"] == "start"]
    assert steps[0] == 0 and steps[1] in (10, 20, 30, 40)
    assert hosts.result() == json.loads(expected)
    (third,) = processes.ends([hosts.start("third", "study", "collect", "tiny.py")])
    assert third.code == 0 and "rf" in Path(third.out.strip()).read_text(), third
    assert any(name == "tiny/results.csv" for name in Remote(hosts.url).listing())
    (status,) = processes.ends([hosts.start("third", "study", "status", "tiny.py", "--json")])
    told = json.loads(status.out)
    assert [(row["name"], row["state"]) for row in told["runs"]] == [("rf", "done"), ("log normal", "new")]


@pytest.mark.slow
def test_hosts_that_share_nothing_but_a_store_train_together(hosts: Hosts, mmdit, processes: Processes) -> None:
    """Two processes, each with a folder of its own; SIGTERM to one, and on with both."""
    assert mmdit(*TRAIN).returncode == 0
    (path,) = (mmdit.folder / "studies" / "tiny").glob("rf-*")
    expected = json.loads((path / "result.json").read_text())
    both = hosts.together(2, *TRAIN)
    processes.until(both, lambda: any(event["event"] == "checkpoint" for event in hosts.events()))
    both[1].send_signal(signal.SIGTERM)
    ends = processes.ends(both)
    assert [end.code for end in ends] == [75, 75], ends
    ends = processes.ends(hosts.together(2, *TRAIN), 240.0)
    assert [end.code for end in ends] == [0, 0], ends
    assert hosts.result()["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-6)
