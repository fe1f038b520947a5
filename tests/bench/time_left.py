"""How far off the time left is that a running sweep claims, replayed over recorded ones: `make bench ARGS=time-left`

python tests/bench/time_left.py [NAME ...]

At every 2 % of each sweep, up to its last trial's end, from the rows that its ledger then held (test evaluations have
no time of their own there). Target, from a third of the time on: within 25 % of what truly remained, and 5 s. Needs no
GPU and takes seconds; ends with 1 where the target is missed.
"""

import sys
from pathlib import Path

from orchestrator.analysis.moment import Moment
from orchestrator.analysis.pace import Pace
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import status_of
from orchestrator.ledger.rows import Entry
from orchestrator.settings import SweepSettings
from tests.support.timelines import recorded

SHARE, SECONDS = 0.25, 5.0
NAMES = ("smollm2-grid", "smollm2-rates")
N_MOMENTS = 50


def claimed(now: float, entries: tuple[Entry, ...], settings: SweepSettings) -> float | None:
    """Seconds until the last task has ended."""
    moment = Moment(now=now, pace=Pace.of(entries, now))
    trials = [entry.result for entry in entries]
    ended = any(not trial.is_of_search for trial in trials)
    left = status_of(trials, settings, ended=ended, moment=moment).seconds_left
    return None if left is None else left - moment.writing_seconds_left


def replay(name: str) -> bool:
    """Print each moment's claim beside the truth; returns whether the target is met."""
    sweep = SweepSnapshot.read_in(Path("mlflow_runs/recorded") / name)
    moments, end = recorded(sweep, N_MOMENTS)
    begin, n_off, n = min(trial.started_at for trial in sweep.trials if trial.started_at), 0, 0
    print(f"{name}: {end - begin:.0f} s from the first trial to the last evaluation")
    for now, entries in moments:
        left, true = claimed(now, entries, sweep.settings), end - now
        is_off = left is None or abs(left - true) > SHARE * true + SECONDS
        if now - begin >= (end - begin) / 3:
            n, n_off = n + 1, n_off + is_off
        said = "-" if left is None else f"{left:.0f}"
        print(f"  at {100 * (now - begin) / (end - begin):3.0f} %: {said:>5} s said, {true:4.0f} s true")
    print(f"  from a third on: {n - n_off} of {n} within {SHARE:.0%} and {SECONDS:g} s")
    return n_off == 0


def main(names: list[str]) -> int:
    return 0 if all([replay(name) for name in names or NAMES]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
