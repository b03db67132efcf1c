"""The watchdog ends a process that hangs, in whatever way it hangs, and lets alone one that goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmdit_jax.errors import EXIT_HUNG
from mmdit_jax.watchdog import SLOW, Watchdog

HEAD = """
import ctypes, signal, sys, threading, time
from pathlib import Path
from mmdit_jax.watchdog import Watchdog
stacks = Path(sys.argv[1])

def waits_for_ever():
    threading.Event().wait()

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(60)  # a C call with the GIL held: no Python runs in this process meanwhile

def beside():
    threading.Event().wait()

def until(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        yield
"""


def child(body: str, stacks: Path) -> tuple[int, float, str]:
    """(exit code, seconds after ``go`` was printed, the file) of a process that runs ``HEAD`` and ``body``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + body, str(stacks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "go\n", process.communicate()
        begun = time.monotonic()
        process.wait(timeout=40)
        seconds = time.monotonic() - begun
    finally:
        process.kill()
        process.communicate()
    return process.returncode, seconds, stacks.read_text() if stacks.exists() else ""


@pytest.mark.parametrize("how", ["waits_for_ever", "holds_the_interpreter"])
def test_a_hang_ends_with_stacks(tmp_path: Path, how: str) -> None:
    body = f"""
threading.Thread(target=beside, daemon=True).start()
watchdog = Watchdog(0.5, stacks)
watchdog.beat()
print("go", flush=True)
{how}()
"""
    code, seconds, said = child(body, tmp_path / "stacks" / "attempt1-process0.txt")
    assert code == -signal.SIGALRM and 128 - code == EXIT_HUNG
    assert 0.3 < seconds < 10
    assert f"in {how}\n" in said
    if how == "waits_for_ever":
        assert "in beside\n" in said  # all threads
    assert "Current thread" in said


def test_beats_keep_it_alive_and_the_last_one_does_not(tmp_path: Path) -> None:
    body = """
watchdog = Watchdog(1.0, stacks)
watchdog.beat()
print("go", flush=True)
for _ in until(2.5):
    watchdog.beat()
waits_for_ever()
"""
    code, seconds, said = child(body, tmp_path / "stacks.txt")
    assert code == -signal.SIGALRM and 2.5 < seconds < 15
    assert "in waits_for_ever\n" in said


def test_what_is_slow_has_more_time(tmp_path: Path) -> None:
    """Longer than the time, shorter than ``SLOW`` times as long; and no longer than that."""
    assert SLOW == 4
    body = """
watchdog = Watchdog(0.5, stacks)
watchdog.beat()
print("go", flush=True)
with watchdog.slowly():
    time.sleep(1.0)
waits_for_ever()
"""
    code, seconds, said = child(body, tmp_path / "stacks.txt")
    assert code == -signal.SIGALRM and 1.4 < seconds < 10
    assert "in waits_for_ever\n" in said
    code, seconds, _ = child(body.replace("time.sleep(1.0)", "waits_for_ever()"), tmp_path / "slow.txt")
    assert code == -signal.SIGALRM and 1.8 < seconds < 10


def test_afterwards_it_is_as_before(tmp_path: Path) -> None:
    def left() -> float:
        return signal.getitimer(signal.ITIMER_REAL)[0]

    watchdog = Watchdog(30, tmp_path / "stacks.txt")
    assert left() == 0  # nothing is expected before the first beat
    watchdog.beat()
    assert 20 < left() <= 30
    with watchdog.slowly():
        assert 110 < left() <= 120
    assert 20 < left() <= 30
    watchdog.beat(slow=True)
    assert 110 < left() <= 120
    watchdog.close()
    assert left() == 0


def test_at_rest_and_closed_nothing_is_expected(tmp_path: Path) -> None:
    body = """
watchdog = Watchdog(0.3, stacks)
watchdog.beat()
print("go", flush=True)
watchdog.rest()
time.sleep(0.8)
watchdog.beat()
watchdog.close()
watchdog.beat()
time.sleep(0.8)
watchdog.close()
sys.exit(7)
"""
    stacks = tmp_path / "stacks" / "attempt1-process0.txt"
    code, seconds, _ = child(body, stacks)
    assert code == 7 and seconds > 1.5
    assert list(tmp_path.iterdir()) == []  # neither the file nor its folder, of which nobody has any use


def test_the_file_of_another_stays(tmp_path: Path) -> None:
    other = tmp_path / "stacks" / "attempt1-process1.txt"
    other.parent.mkdir()
    other.write_text("Current thread")
    watchdog = Watchdog(30, tmp_path / "stacks" / "attempt1-process0.txt")
    watchdog.close()
    assert list((tmp_path / "stacks").iterdir()) == [other] and other.read_text() == "Current thread"


def test_inactive(tmp_path: Path) -> None:
    """With 0, and outside the main thread, where no timer could be its own."""

    def use(seconds: float) -> None:
        watchdog = Watchdog(seconds, tmp_path / "stacks" / "none.txt")
        watchdog.beat()
        with watchdog.slowly():
            found.append(signal.getitimer(signal.ITIMER_REAL)[0])
        found.append(signal.getitimer(signal.ITIMER_REAL)[0])
        watchdog.rest()
        watchdog.close()

    found: list[float] = []
    use(0.0)
    thread = threading.Thread(target=use, args=(20.0,))
    thread.start()
    thread.join()
    assert found == [0.0] * 4 and list(tmp_path.iterdir()) == []
