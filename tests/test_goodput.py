"""Goodput from events: against a loop that keeps its own books, on histories that are broken, and on some by hand."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from goodput_cases import Events, FakeRun, attempt, check_sum, story

from scaling.goodput import LOST, goodput


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
