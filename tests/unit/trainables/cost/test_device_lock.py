"""Turns on one device, between real processes."""

import fcntl
import subprocess
import sys
import time

import pytest

from trainables.cost.device_lock import DeviceLock

WORKER = """
import sys, time
from pathlib import Path
from trainables.cost.device_lock import DeviceLock
kind, folder, n_turns, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
turn = DeviceLock("d", folder)
for _ in range(n_turns):
    with getattr(turn, kind)():
        start = time.monotonic()
        time.sleep(seconds)
        print(kind, start, time.monotonic(), flush=True)
"""


def worker(kind: str, folder, n_turns: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORKER, kind, str(folder), str(n_turns), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def spans(process: subprocess.Popen[str]) -> list[tuple[float, float]]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [(float(start), float(end)) for _, start, end in map(str.split, out.splitlines())]


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_who_is_alone_overlaps_nobody_and_others_overlap_each_other(tmp_path):
    shared = [worker("shared", tmp_path, 20, 0.05) for _ in range(2)]
    alone = [worker("alone", tmp_path, 5, 0.03) for _ in range(2)]
    works = [spans(process) for process in shared]
    turns = [span for process in alone for span in spans(process)]
    assert not any(overlap(turn, work) for turn in turns for work in works[0] + works[1])
    assert not any(overlap(a, b) for i, a in enumerate(turns) for b in turns[:i])
    assert any(overlap(a, b) for a in works[0] for b in works[1])


def test_a_steady_stream_of_others_does_not_keep_one_waiting(tmp_path):
    streams = [worker("shared", tmp_path, 40, 0.05) for _ in range(2)]  # without a gate, one is always inside
    time.sleep(0.4)
    waiting = worker("alone", tmp_path, 1, 0.01)
    turn = spans(waiting)[0]
    ends = [spans(stream)[-1][1] for stream in streams]
    assert all(turn[1] < end for end in ends)


def test_a_killed_process_gives_its_turn_back(tmp_path):
    holder = worker("alone", tmp_path, 1, 60)
    time.sleep(0.5)
    holder.kill()
    holder.wait()
    with DeviceLock("d", tmp_path).alone():
        pass


def test_a_fault_inside_gives_the_turn_back(tmp_path):
    turn = DeviceLock("d", tmp_path)
    for kind in (turn.shared, turn.alone):
        with pytest.raises(RuntimeError), kind():
            raise RuntimeError
    with turn.alone():
        pass


def is_locked(path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


NESTED = """
import sys
from pathlib import Path
from trainables.cost.device_lock import DeviceLock
turn = DeviceLock("d", Path(sys.argv[1]))
with turn.shared():
    print("in", flush=True)
    sys.stdin.readline()
    with turn.shared():
        print("still in", flush=True)
"""


def test_a_turn_within_a_turn_does_not_wait_for_one_who_waits_for_it(tmp_path):
    inside = subprocess.Popen(
        [sys.executable, "-c", NESTED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert inside.stdout.readline() == "in\n"
    waiting = worker("alone", tmp_path, 1, 0.01)
    while not is_locked(tmp_path / "d.gate"):
        time.sleep(0.01)
    out, _ = inside.communicate("go on\n", timeout=60)
    assert out == "still in\n"
    assert len(spans(waiting)) == 1


def test_who_has_a_turn_is_refused_to_be_alone_rather_than_wait_for_itself(tmp_path):
    turn = DeviceLock("d", tmp_path)
    with turn.shared(), pytest.raises(RuntimeError, match="has a turn"), turn.alone():
        pass
    with turn.alone(), turn.shared():
        pass
