"""Goodput from events: against a loop that keeps its own books, on histories that are broken, and in the report."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from scaling.errors import TableError
from scaling.goodput import GOODPUT_COLUMNS, LOST, Goodput, goodput, goodput_table, study_goodput
from scaling.goodput_section import MOST_BARS, goodput_section
from scaling.report import write_report

Events = list[dict[str, Any]]


class Killed(Exception):
    """The processes stopped in the middle of whatever they did."""


@dataclass
class Stretch:
    """Time in one thing: ``told`` once a ``spent`` had it, ``said`` once an event named its step or a later one."""

    begin: float
    end: float
    what: str
    step: int = 0
    told: bool = False
    said: bool = False
    live: bool = True


class FakeRun:
    """A run on a clock of its own that is killed, preempted and rewound at random, and books every second itself."""

    STEPS, TRAIN, VALIDATE, CHECKPOINT = 60, 10, 15, 12

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = 1.8e9
        self.events: Events = []
        self.books: list[Stretch] = []
        self.kill = self.preempt = self.began = math.inf
        self.loop_from = self.saved = self.attempt = self.lost_steps = self.preempted = self.heard = 0
        self.supervised = self.random.random() < 0.6  # someone writes ``ended``
        self.says_start = self.random.random() < 0.5  # even where no step is left
        self.trained = False
        while not self._one_attempt():
            self._spend("down", self.random.uniform(5, 300))

    def _spend(self, what: str, seconds: float, step: int = 0) -> None:
        left = self.kill - self.clock if what != "down" else math.inf
        self.books.append(Stretch(self.clock, self.clock + min(seconds, left), what, step))
        self.clock += min(seconds, left)
        if seconds > left:
            raise Killed

    def _say(self, event: str, *, spent: bool = False, **fields: Any) -> None:
        own = self.books[self.loop_from :]
        if spent:
            new = [item for item in own if not item.told]
            sums: dict[str, float] = {}
            for item in new:
                item.told = True
                if item.what != "unaccounted":
                    sums[item.what] = sums.get(item.what, 0.0) + item.end - item.begin
            fields["spent"] = sums
        if event in ("train", "validation", "checkpoint", "preempted", "diverged", "rewound", "left"):
            for item in own:
                item.said = True
        self.events.append({"event": event, "time": self.clock, **fields})

    def _go_back(self, to: int) -> None:
        for item in self.books:
            if item.live and item.step > to:
                item.live = False
                self.lost_steps += item.said
                if item.told:
                    item.what = "redone"

    def _one_attempt(self) -> bool:
        first, heard = len(self.books), len(self.events)
        self.attempt += 1
        self.began = self.clock
        self.kill = self.clock + self.random.expovariate(1 / 150) if self.attempt < 9 else math.inf
        self.preempt = self.clock + self.random.expovariate(1 / 300) if self.attempt < 9 else math.inf
        self.loop_from, self.running = first, False
        finished = False
        try:
            finished = self._live()
            self.kill = math.inf
            self._spend("unaccounted", 0.7)  # shutting down
        except Killed:
            self.kill = math.inf
            # The supervisor takes a while to see it.
            self._spend("unaccounted" if self.running or self.trained else "startup", 1.5)
            for item in self.books[first:]:
                # No result was told, so nobody knows that it was evaluating.
                item.what = "unaccounted" if item.what == "evaluation" else item.what
        own = self.books[first:]
        spoke = len(self.events) > heard
        self.heard += spoke
        if self.supervised:
            self.events.append({"event": "ended", "time": self.clock, "code": 0 if finished else 137})
        sign = self.events[-1]["time"] if self.events else 0.0
        for item in own:
            in_loop = item.what in ("step", "compile", "data", "checkpoint", "validation")
            if in_loop and not item.told:
                item.what = "unaccounted"
            if not spoke:
                item.what = "down"
            elif item.end > sign:
                self.books.append(Stretch(max(item.begin, sign), item.end, "down"))
                item.end = max(item.begin, sign)
        return finished

    def _live(self) -> bool:
        pick = self.random
        self._spend("startup", pick.uniform(1, 20))
        self._say("attempt", attempt=self.attempt, began=self.began, processes=1, host="h", job=None)
        told = len(self.books)
        evaluation = pick.uniform(5, 60)
        try:
            self._spend("startup", pick.uniform(1, 20))
            if self.saved < self.STEPS or self.says_start:
                self._go_back(self.saved)
                self._say("start", step=self.saved)
                self.running, self.loop_from = True, len(self.books)
                if self.saved < self.STEPS and not self._loop():
                    return False
            self._spend("evaluation", evaluation)
        except Killed:
            if not self.running and self.trained:  # such an attempt may have been at its evaluation
                for item in self.books[told:]:
                    item.what = "unaccounted"
            raise
        self._say("done", train_seconds=1.0, evaluate_seconds=evaluation)
        return True

    def _loop(self) -> bool:
        pick, step, first = self.random, self.saved, True
        step_seconds = pick.uniform(0.5, 3)

        def sometimes() -> bool:
            return pick.random() < 0.8

        while step < self.STEPS:
            step += 1
            if first:
                self._spend("compile", pick.uniform(2, 20))
                first = False
            self._spend("data", pick.uniform(0, 0.3))
            self._spend("step", step_seconds, step)
            self._spend("unaccounted", 0.01)
            if pick.random() < 0.01 and step > self.saved:
                self._say("diverged", step=step)
                self._say("rewound", spent=True, step=step, to=self.saved, skip=1)
                self._go_back(self.saved)
                step = self.saved
                continue
            if step % self.TRAIN == 0:
                self._say("train", spent=sometimes(), step=step)
            if step % self.VALIDATE == 0:
                self._spend("validation", pick.uniform(1, 5))
                self._say("validation", spent=sometimes(), step=step)
            stop = self.clock > self.preempt and step < self.STEPS
            if stop or step % self.CHECKPOINT == 0:
                self._spend("checkpoint", pick.uniform(0.5, 4))
                self.saved = step
                self._say("checkpoint", spent=sometimes(), step=step)
            if stop:
                self._spend("checkpoint", 2.0)
                self._say("preempted", spent=sometimes(), step=step)
                self.preempted += 1
                return False
        self._say("left", spent=True, step=step)
        self.trained = True
        return True

    def sums(self) -> dict[str, float]:
        """Seconds by category since the first attempt that wrote anything began."""
        origin = next(event["began"] for event in self.events if event["event"] == "attempt")
        sums = dict.fromkeys(("step", *LOST), 0.0)
        for item in self.books:
            if item.begin >= origin:
                # The books end where the events do.
                sums[item.what] += max(min(item.end, self.events[-1]["time"]) - item.begin, 0.0)
        return sums


def check_sum(found: Goodput) -> None:
    assert set(found.lost) == set(LOST)
    assert found.useful_seconds >= 0 and all(seconds >= 0 for seconds in found.lost.values())
    assert found.useful_seconds + sum(found.lost.values()) == pytest.approx(found.wall_seconds, abs=1e-6)


@pytest.mark.parametrize("block", range(4))
def test_against_a_loop_with_its_own_books(block: int) -> None:
    seen = Counter[str]()
    for seed in range(100 * block, 100 * block + 100):
        run = FakeRun(seed)
        found = goodput(run.events)
        assert found is not None
        check_sum(found)
        sums = run.sums()
        assert found.useful_seconds == pytest.approx(sums.pop("step"), abs=1e-5), seed
        assert dict(found.lost) == pytest.approx(sums, abs=1e-5), seed
        assert (found.steps_lost, found.preemptions) == (run.lost_steps, run.preempted), seed
        assert found.attempts == run.heard and found.restarts == run.heard - 1, seed
        seen += Counter(event["event"] for event in run.events)
        seen += Counter({f"lost {name}": 1 for name in LOST if sums[name] > 0.1})
        seen["all gone before an event"] += run.heard < run.attempt
        seen["evaluated twice"] += sum(event["event"] == "left" for event in run.events) < run.heard - 1
    assert all(seen[name] >= 10 for name in ("rewound", "preempted", "ended", *(f"lost {n}" for n in LOST))), seen
    assert seen["all gone before an event"] and seen["evaluated twice"], seen


def test_sum_is_the_wall_time_of_broken_histories_too() -> None:
    known = 0
    for seed in range(400):
        pick = random.Random(seed)
        events = [dict(event) for event in FakeRun(seed).events]
        shift = 0.0
        for event in events:
            shift += pick.choice((0.0,) * 20 + (-90.0, 90.0))  # the clock is set, or another host's
            event["time"] = round(event["time"] + shift, pick.choice((0, 3)))
            if "began" in event:
                event["began"] = round(event["began"] + shift, 1)
            if pick.random() < 0.02 and "spent" in event:
                event["spent"] = {"step": math.nan, "data": -5, "checkpoint": "x", "walk": 3.0, "compile": 1e3}
            if pick.random() < 0.02:
                event.pop(pick.choice(sorted(set(event) - {"event"})))
        events = [event for event in events if pick.random() > 0.03][: pick.choice((None, pick.randrange(40)))]
        now = pick.choice((None, 1.8e9, 1.9e9))
        found = goodput(events, now)
        if found is not None:
            known += 1
            check_sum(found)
    assert known > 200


def attempt(time: float, began: float) -> dict[str, Any]:
    return {"event": "attempt", "time": time, "began": began, "attempt": 1, "processes": 1, "host": "h", "job": None}


def story() -> Events:
    """Killed at 100 s after step 20, begun again at 130 s after step 12, done at 200 s."""
    return [
        attempt(1005.0, 1000.0),
        {"event": "start", "time": 1010.0, "step": 0},
        {"event": "train", "time": 1050.0, "step": 10, "spent": {"compile": 20.0, "step": 18.0, "data": 1.0}},
        {"event": "train", "time": 1080.0, "step": 20, "spent": {"step": 20.0, "checkpoint": 7.0, "data": 1.0}},
        {"event": "ended", "time": 1100.0, "code": 137},
        attempt(1135.0, 1130.0),
        {"event": "start", "time": 1140.0, "step": 12},
        {"event": "train", "time": 1160.0, "step": 20, "spent": {"step": 16.0, "compile": 4.0}},
        {"event": "trained", "time": 1165.0, "step": 20, "spent": {"validation": 5.0}},
        {"event": "done", "time": 1195.0, "train_seconds": 25.0, "evaluate_seconds": 30.0},
        {"event": "ended", "time": 1200.0, "code": 0},
    ]


def test_a_story_by_hand() -> None:
    found = goodput(story())
    assert found is not None
    assert (found.wall_seconds, found.attempts, found.restarts, found.steps_lost) == (200.0, 2, 1, 8)
    assert found.useful_seconds == pytest.approx(18 + 0.2 * 20 + 16)
    lost = {"redone": 16, "compile": 24, "data": 2, "checkpoint": 7, "validation": 5, "startup": 20, "evaluation": 30}
    assert dict(found.lost) == pytest.approx({**lost, "down": 30, "unaccounted": 1 + 2 + 20 + 5})
    assert found.share == pytest.approx(38 / 200) and found.largest[0] == "evaluation"
    # Looked at again a day later: nothing ran, and nothing is added.
    assert goodput([*story(), attempt(9e5, 9e5), {"event": "done", "time": 9e5, "evaluate_seconds": 0.0}]) == found
    assert goodput(story(), now=9e5) == found


def test_time_up_to_now_of_a_run_that_is_not_over() -> None:
    def after(count: int, now: float) -> dict[str, float]:
        found = goodput(story()[:count], now)
        assert found is not None and found.wall_seconds == now - 1000
        check_sum(found)
        return dict(found.lost)

    assert after(1, 1060.0)["startup"] == 60  # it waits for its other processes
    assert after(4, 1090.0)["unaccounted"] == pytest.approx(1 + 2 + 10)
    assert after(5, 1110.0)["down"] == 10  # waits in the queue
    refused: Events = [*story()[:4], {"event": "refused", "time": 1085.0, "message": "disk full"}]
    found = goodput(refused, 1100.0)
    assert found is not None and found.lost["down"] == 15 and found.lost["unaccounted"] == pytest.approx(1 + 2 + 5)
    preempted: Events = [*story()[:4], {"event": "preempted", "time": 1085.0, "step": 20, "spent": {"checkpoint": 5.0}}]
    found = goodput(preempted, 1100.0)
    assert found is not None and found.lost["down"] == 15 and found.preemptions == 1 and found.steps_lost == 0


def test_a_rewind_loses_steps_of_its_own_attempt_and_of_the_one_before() -> None:
    events: Events = [
        attempt(0.0, 0.0),
        {"event": "start", "time": 0.0, "step": 0},
        {"event": "checkpoint", "time": 10.0, "step": 10, "spent": {"step": 10.0}},
        attempt(10.0, 10.0),
        {"event": "start", "time": 10.0, "step": 10},
        {"event": "rewound", "time": 14.0, "step": 14, "to": 5, "skip": 1, "spent": {"step": 4.0}},
        {"event": "train", "time": 20.0, "step": 11, "spent": {"step": 6.0}},
    ]
    found = goodput(events)
    assert found is not None
    assert found.lost["redone"] == pytest.approx(4 + 5) and found.steps_lost == 9
    assert found.useful_seconds == pytest.approx(5 + 6)


def test_a_rewind_by_a_later_attempt() -> None:
    begun: Events = [
        attempt(0.0, 0.0),
        {"event": "start", "time": 0.0, "step": 0},
        {"event": "checkpoint", "time": 10.0, "step": 10, "spent": {"step": 10.0}},
        {"event": "train", "time": 14.0, "step": 14, "spent": {"step": 4.0}},
        {"event": "diverged", "time": 15.0, "step": 15, "message": "not finite"},
    ]
    looked_at = [attempt(5000.0, 4990.0), {"event": "ended", "time": 5001.0, "code": 3}]
    diverged = goodput(begun)
    assert diverged is not None and diverged.wall_seconds == 15 and diverged.useful_seconds == 14
    assert goodput([*begun, *looked_at], now=9e5) == diverged  # nothing runs any more
    gone_on: Events = [
        attempt(20.0, 20.0),
        {"event": "start", "time": 20.0, "step": 10},
        {"event": "rewound", "time": 21.0, "step": 15, "to": 10, "skip": 5, "spent": {"step": 1.0}},
        {"event": "train", "time": 26.0, "step": 15, "spent": {"step": 5.0}},
    ]
    found = goodput([*begun, *gone_on], now=30.0)
    assert found is not None and found.steps_lost == 5
    assert found.wall_seconds == 30 and found.lost["redone"] == 5 and found.useful_seconds == 15


def test_runs_side_by_side_are_told_a_share_of_time_that_all_had() -> None:
    events: Events = [
        attempt(2.0, 0.0),
        {"event": "start", "time": 4.0, "step": 0, "replicas": 4},
        {"event": "train", "time": 24.0, "step": 10, "spent": {"step": 4.0, "compile": 1.0}},
        {"event": "left", "time": 25.0, "step": 10, "spent": {"checkpoint": 0.25}},
        {"event": "trained", "time": 26.0, "train_seconds": 6.5},
        attempt(60.0, 60.0),
        {"event": "done", "time": 70.0, "train_seconds": 1.0, "evaluate_seconds": 9.0},
    ]
    found = goodput(events)
    assert found is not None
    check_sum(found)
    assert found.useful_seconds == pytest.approx(16)
    lost = {"compile": 4, "checkpoint": 1, "startup": 5, "down": 34, "evaluation": 9, "unaccounted": 1}
    assert {name: seconds for name, seconds in found.lost.items() if seconds} == pytest.approx(lost)


def test_spent_that_exceeds_its_events_by_rounding_still_fits() -> None:
    events: Events = [attempt(0.0, 0.0), {"event": "start", "time": 0.0, "step": 0}]
    events += [{"event": "train", "time": float(i), "step": i, "spent": {"step": 1.0004}} for i in range(1, 6)]
    found = goodput(events)
    assert found is not None
    check_sum(found)
    assert found.useful_seconds == pytest.approx(5.0) and found.share <= 1


def test_old_events_have_no_goodput() -> None:
    assert goodput([]) is None
    without_attempts = [event for event in story() if event["event"] not in ("attempt", "ended")]
    assert goodput(without_attempts) is None
    bare = [{key: value for key, value in event.items() if key != "spent"} for event in story()]
    assert goodput(bare) is None
    # Begun by a version that told nothing, gone on with by one that does, and the other way round.
    old = [event for event in bare if event["event"] not in ("attempt", "ended")][:3]
    assert goodput([*old, *story()]) is None
    assert goodput([*story()[:5], *old]) is None
    assert goodput([{"event": "ended", "time": 900.0, "code": 1}, *story()]) == goodput(story())


def test_a_study_is_the_sum_of_its_runs() -> None:
    runs = [found for seed in range(5) if (found := goodput(FakeRun(seed).events)) is not None]
    total = study_goodput(runs)
    check_sum(total)
    assert total.wall_seconds == pytest.approx(sum(run.wall_seconds for run in runs))
    assert total.attempts == total.restarts + len(runs)
    empty = study_goodput([])
    assert empty.wall_seconds == 0 and math.isnan(empty.share)


def test_rows_of_the_table() -> None:
    known, unknown = goodput_table([("0a", "d2-rf", goodput(story())), ("0b", "d2-old", None)])
    assert list(known) == list(unknown) == ["run_id", "name", *GOODPUT_COLUMNS]
    assert known["goodput"] == pytest.approx(0.19) and known["down_seconds"] == 30 and known["steps_lost"] == 8
    parts = [known["useful_seconds"], *(known[f"{name}_seconds"] for name in LOST)]
    assert sum(parts) == pytest.approx(known["wall_seconds"])
    assert unknown["name"] == "d2-old" and all(unknown[name] is None for name in GOODPUT_COLUMNS)


def small_study(folder: Path, runs: list[tuple[str, str, Goodput | None]]) -> Path:
    """A folder with a curve a run, as little as a report is made of, and goodput.csv."""
    rows = [
        {"run_id": run_id, "name": name, "formulation": "rf", "depth": 1, "dataset": "scenes", "step": step}
        | {"train_flops": 1e9 * step, "val_loss": 1 / step}
        for run_id, name, _ in runs
        for step in (1, 2, 4)
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "curves.csv", index=False)
    pd.DataFrame(goodput_table(runs)).to_csv(folder / "goodput.csv", index=False)
    return folder


def test_the_report_has_a_section(tmp_path: Path) -> None:
    runs = [(f"{seed:08x}", f"d1-seed{seed}", goodput(FakeRun(seed).events)) for seed in range(4)]
    folder = small_study(tmp_path / "s", [*runs, ("ff", "d1-old", None)])
    page = write_report(folder, title="s", draws=20).read_text(encoding="utf-8")
    part = page.split('id="goodput"')[1].split("</section>")[0]
    total = study_goodput([found for _, _, found in runs if found is not None])
    name, seconds = total.largest
    assert f"Goodput is {100 * total.share:.1f} % of" in part and "over 4 runs" in part
    assert f"the largest loss is “{name}” with {100 * seconds / total.wall_seconds:.1f} %" in part
    assert "1 of 5 runs, whose events do not tell it" in part and "unaccounted" in part
    with Image.open(folder / "figures" / "goodput.png") as image:
        assert image.width > image.height
    assert (folder / "figures" / "goodput.pdf").read_bytes().startswith(b"%PDF")


def test_no_section_without_the_table(tmp_path: Path) -> None:
    folder = small_study(tmp_path / "s", [("0a", "d1-old", None)])
    for text in (None, "", "run_id,name\n"):
        if text is not None:
            (folder / "goodput.csv").write_text(text)
        assert goodput_section(folder / "goodput.csv", folder / "figures") == []
    (folder / "goodput.csv").unlink()
    page = write_report(folder, title="s", draws=20).read_text(encoding="utf-8")
    assert 'id="goodput"' not in page and not (folder / "figures" / "goodput.png").exists()
    (folder / "goodput.csv").write_text("run_id,name,wall_seconds\n0a,a,12\n")
    with pytest.raises(TableError, match="column='attempts'"):
        goodput_section(folder / "goodput.csv", folder / "figures")


def test_of_many_runs_the_worst_are_drawn(tmp_path: Path) -> None:
    found = goodput(story())
    runs = [(f"{i:02x}", f"run{i}", found) for i in range(MOST_BARS + 3)]
    folder = small_study(tmp_path / "s", runs)
    (part,) = goodput_section(folder / "goodput.csv", folder / "figures")
    assert f"the {MOST_BARS} runs of lowest goodput" in part.broad[0][1]
    assert f"over {MOST_BARS + 3} runs" in part.findings[0]
