"""The processes of a run: how they join, agree before they act, and end. With real ones, but for what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import pytest
from conftest import fake_devices
from jax._src import distributed
from process_group import Processes, one_run

from mmdit_jax.errors import Diverged, Held, Infrastructure, UserError
from mmdit_jax.processes import end, exchange, from_first, is_infrastructure, join, joined, preemption, together

ALL = {"MMDIT_COORDINATOR": "127.0.0.1:9", "MMDIT_PROCESSES": "2", "MMDIT_PROCESS": "0"}


def start(processes: Processes, call: str, count: int, absent: int | None = None) -> list[subprocess.Popen[str]]:
    """Processes of one run that each call ``call``, of this module as ``t``; number ``absent`` is never there."""
    script = f"import sys; sys.path.insert(0, sys.argv[1]); import test_processes as t; {call}"
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    own = {**fake_devices(1), "MMDIT_HEARTBEAT_SECONDS": "10"}
    return [processes.start(command, {**own, **told}) for number, told in enumerate(one_run(count)) if number != absent]


def is_aborted(code: int, err: str) -> bool:
    """Whether JAX ended the process, since it missed another one."""
    return code == -signal.SIGABRT and "the JAX distributed service detected fatal errors" in err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MMDIT_DISTRIBUTED": "yes"}, "MMDIT_DISTRIBUTED='yes': expected 'auto', or none"),
        (
            {"MMDIT_PROCESSES": "2"},
            "MMDIT_COORDINATOR: not set beside MMDIT_PROCESSES; set all three, or MMDIT_DISTRIBUTED=auto",
        ),
        (
            {**ALL, "MMDIT_PROCESS": ""},  # as an engine's template leaves it
            "MMDIT_PROCESS: not set beside MMDIT_COORDINATOR, MMDIT_PROCESSES; set all three, or "
            "MMDIT_DISTRIBUTED=auto",
        ),
        ({**ALL, "MMDIT_PROCESSES": "two"}, "MMDIT_PROCESSES='two': expected a whole number, 0 or more"),
        ({**ALL, "MMDIT_PROCESS": "-1"}, "MMDIT_PROCESS='-1': expected a whole number, 0 or more"),
        ({**ALL, "MMDIT_PROCESS": "2"}, "MMDIT_PROCESS=2: expected less than MMDIT_PROCESSES=2"),
        ({**ALL, "MMDIT_PROCESSES": "0"}, "MMDIT_PROCESS=0: expected less than MMDIT_PROCESSES=0"),
        ({**ALL, "MMDIT_HEARTBEAT_SECONDS": "1.5"}, "MMDIT_HEARTBEAT_SECONDS='1.5': expected a whole number"),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        join(environment)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    assert not joined()


def test_one_process_joins_nobody() -> None:
    for environment in ({}, {"MMDIT_COORDINATOR": "", "HOME": "/"}, {**ALL, "MMDIT_PROCESSES": "1"}):
        join(environment)
        assert not joined()
    assert exchange("alone", {"a": (1, 2)}) == [{"a": [1, 2]}]
    assert from_first("alone", lambda: 5) == 5
    assert together("alone", lambda: "x") == "x"
    with pytest.raises(UserError, match=r"^n=0: expected 1$"):
        together("alone", fails(UserError("n=0: expected 1")))
    with pytest.raises(ZeroDivisionError):
        from_first("alone", lambda: 1 // 0)
    for code in (0, 2, 75):
        end(code)  # and this goes on


def fails(error: Exception) -> Any:
    """What raises the error."""

    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("text", "of_cpu", "of_gpu", "of_several"),
    [
        ("UNAVAILABLE: Socket closed", False, True, True),
        ("ABORTED: peer is gone", False, True, True),
        ("INTERNAL: CUDA error: an illegal memory access", False, True, True),
        ("DATA_LOSS: ECC", False, True, True),
        ("UNKNOWN: NCCL", False, True, True),
        ("FAILED_PRECONDITION: Gloo context", False, False, True),
        ("INVALID_ARGUMENT: shapes of UNAVAILABLE: things", False, False, False),
        ("UNIMPLEMENTED: no such kernel", False, False, False),
        ("RESOURCE_EXHAUSTED: Out of memory", False, False, False),
        ("NOT_FOUND: no symbol", False, False, False),
    ],
)
def test_whose_fault_an_error_is(
    monkeypatch: pytest.MonkeyPatch, text: str, of_cpu: bool, of_gpu: bool, of_several: bool
) -> None:
    error = jax.errors.JaxRuntimeError(text)
    assert is_infrastructure(error) is of_cpu
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert is_infrastructure(error) is of_gpu
    monkeypatch.setattr("mmdit_jax.processes.joined", lambda: True)
    assert is_infrastructure(error) is of_several
    assert not is_infrastructure(RuntimeError(text)) and not is_infrastructure(UserError(text))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (TimeoutError("barrier"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (KeyError("x"), False),
    ],
)
def test_whose_fault_an_error_of_the_system_is(error: Exception, expected: bool) -> None:
    assert is_infrastructure(error) is expected


class Odd(Exception):
    """Of a kind that no other process knows."""


def raised(act: Any) -> list[str]:
    """[kind, message] of what ``act`` raises."""
    try:
        act()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def tell(key: str) -> None:
    """Tell the other processes, by the coordinator."""
    distributed.global_state.client.key_value_set(key, "")


def wait_for(key: str) -> None:
    """Until one of the processes has told it."""
    distributed.global_state.client.blocking_key_value_get(key, 60_000)


def agree() -> None:
    """What each of three processes sees, printed as JSON; it ends with 75."""
    join()
    number, said = jax.process_index(), {}
    said["joined"] = [joined(), jax.process_count(), number]
    said["exchange"] = [exchange("values", {"n": number, "t": (number,)}), exchange("more", "abc"[number])]
    calls: list[int] = []
    said["from first"] = from_first("number", lambda: calls.append(1) or [10 + number, None])
    said["calls"] = len(calls)
    for error in (UserError("a=1: no"), Held("run='r': held"), Diverged("r: diverged at step 3"), Odd("it broke")):
        said[type(error).__name__] = raised(lambda error=error: from_first("thing", fails(error)))
    said["together"] = together("all", lambda: 7 * number)
    mine = fails(UserError(f"disk {number}: full")) if number else (lambda: 1)
    said["together fails"] = raised(lambda: together("disks", mine))
    if number == 2:
        for other in range(2):
            wait_for(f"gave up/{other}")  # it comes, too late
    begun = time.monotonic()
    said["late"] = raised(lambda: exchange("a late thing", number, seconds=2))
    said["waited"] = time.monotonic() - begun
    tell(f"gave up/{number}")
    said["after"] = exchange("afterwards", number, seconds=60)
    device = jax.errors.JaxRuntimeError
    said["infrastructure"] = [is_infrastructure(device("UNKNOWN: x")), is_infrastructure(device("NOT_FOUND: x"))]
    with preemption(0) as stop:

        def stops_after(step: int) -> bool:
            if number == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01 if number == 0 else 0.011)
            return stop(step)

        said["stopped"] = next((step for step in range(1, 5000) if stops_after(step)), None)
    print(json.dumps(said))
    time.sleep(1.5 * number)  # process 0, without which the others are aborted, is first
    end(75)


@pytest.mark.slow
def test_three_processes_agree(processes: Processes) -> None:
    found = processes.ends(start(processes, "t.agree()", 3))
    assert [code for code, _, _ in found] == [75, 75, 75], found
    said = [json.loads(out.splitlines()[-1]) for _, out, _ in found]
    for number, each in enumerate(said):
        assert each["joined"] == [True, 3, number]
        assert each["exchange"] == [[{"n": n, "t": [n]} for n in range(3)], ["a", "b", "c"]]
        assert each["from first"] == [10, None] and each["calls"] == (number == 0)
        assert each["UserError"] == ["UserError", "a=1: no"]
        assert each["Held"] == ["Held", "run='r': held"]
        assert each["Diverged"] == ["Diverged", "r: diverged at step 3"]
        broke = ["Infrastructure", "thing: process 0 failed: Odd: it broke"] if number else ["Odd", "it broke"]
        assert each["Odd"] == broke
        assert each["together"] == 7 * number
        assert each["together fails"] == ["UserError", "disk 1: full"]
        assert each["late"][0] == "Infrastructure" and each["late"][1].startswith("a late thing: process ")
        assert each["after"] == [0, 1, 2]
        assert each["infrastructure"] == [True, False]
    for each in said[:2]:
        assert each["late"][1] == "a late thing: process 2 of 3 did not come within 2 s"
    assert 1.9 < max(each["waited"] for each in said[:2]) < 20  # of the first to come
    assert len({each["stopped"] for each in said}) == 1 and said[0]["stopped"] >= 5


def stopped_early() -> None:
    """SIGTERM comes to process 1 before a run that goes on from step 40 has taken a step."""
    join()
    if jax.process_index():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for("RECEIVED_PREEMPTION_NOTICE")  # JAX looks once a second
    exchange("here", None)
    with preemption(40) as stop:
        print(next((step for step in range(41, 60) if stop(step)), None))
    end(75)


def test_sigterm_before_the_first_step_stops_after_it(processes: Processes) -> None:
    found = processes.ends(start(processes, "t.stopped_early()", 2))
    assert [code for code, _, _ in found] == [75, 75], found
    assert [out.splitlines()[-1] for _, out, _ in found] == ["41", "41"]


def fail_alike(code: int) -> None:
    """All of them end with ``code``, process 0 a little before the other."""
    join()
    exchange("here", None)
    if jax.process_index():
        wait_for("process 0 ends")
        time.sleep(0.3)  # a part of what it stays for
    else:
        tell("process 0 ends")
    end(code)


def fail_alone() -> None:
    """Process 1 ends in an error of its own; process 0 waits for it in vain."""
    join()
    exchange("here", None)
    if jax.process_index():
        print(time.time(), flush=True)
        end(1)
    print(json.dumps(raised(lambda: exchange("what is next", 0, seconds=30))))
    end(160)


def test_bad_input_ends_all_at_once_with_its_own_code(processes: Processes) -> None:
    """Process 0 is the coordinator: the other one still has its own end, instead of an abort."""
    found = processes.ends(start(processes, "t.fail_alike(2)", 2))
    assert [code for code, _, _ in found] == [2, 2], found


@pytest.mark.slow
def test_who_fails_alone_does_not_wait_for_the_others(processes: Processes) -> None:
    begun = time.monotonic()
    first, second = start(processes, "t.fail_alone()", 2)
    second.wait(timeout=60)
    gone = time.time()
    (code, _, err), (other, out, _) = processes.ends([first, second])
    assert other == 1 and gone - float(out) < 5  # of JAX's 60 for a shutdown together
    assert code == 160 or is_aborted(code, err), (code, err)
    assert time.monotonic() - begun < 60


def reach() -> None:
    """Join where nobody answers; says how that ended."""
    try:
        join(seconds=3)
    except Infrastructure as error:
        print(error)
        sys.exit(160)


@pytest.mark.parametrize("absent", [0, 1])
def test_who_is_never_there_is_not_waited_for(processes: Processes, absent: int) -> None:
    begun = time.monotonic()
    ((code, out, err),) = processes.ends(start(processes, "t.reach()", 2, absent))
    assert time.monotonic() - begun < 60
    assert code == 160 or is_aborted(code, err), (code, err)
    if code == 160:
        assert out.startswith("the other processes of the run can't be reached: ") and out.count("\n") == 1
