"""Histories of runs: of a loop that keeps its own books, and one by hand; and what holds of any goodput."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest

from scaling.goodput import LOST, Goodput

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


def check_sum(found: Goodput) -> None:
    assert set(found.lost) == set(LOST), found
    assert found.useful_seconds >= 0 and all(seconds >= 0 for seconds in found.lost.values()), found
    assert found.useful_seconds + sum(found.lost.values()) == pytest.approx(found.wall_seconds, abs=1e-6), found
