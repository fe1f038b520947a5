"""How far off the time left is that a running sweep claims, replayed over recorded ones: `make bench ARGS=time-left`

python tests/bench/time_left.py [FOLDER ...]

At every 2 % of each sweep, from the rows that its ledger then held, up to its last test evaluation's end, or its last
trial's where a ledger is older than the spans that tell the former, and so when its files were written. Target, from a
third of the time on: within 25 % of what truly remained, and 5 s. Needs no GPU and takes seconds; ends with 1 where the
target is missed.
"""

import sys
from pathlib import Path

from orchestrator.analysis.snapshot import SweepSnapshot
from tests.support.timelines import recorded

SHARE, SECONDS = 0.25, 5.0
FOLDERS = ("mlflow_runs/recorded/smollm2-grid", "mlflow_runs/recorded/smollm2-rates", "tests/bench/demo_times")
"""Two sweeps on a GPU, and the demo on two cores."""
N_MOMENTS = 50


def replay(folder: Path) -> bool:
    """Print each moment's claim beside the truth; returns whether the target is met."""
    sweep = SweepSnapshot.read_in(folder)
    moments, end = recorded(sweep, N_MOMENTS)
    begin, n_off, n = min(trial.started_at for trial in sweep.trials if trial.started_at), 0, 0
    print(f"{folder.name}: {end - begin:.0f} s from the first trial to the end")
    for now, then in moments:
        left, true = then.status(now, is_run=True).seconds_left, end - now
        is_off = left is None or abs(left - true) > SHARE * true + SECONDS
        if now - begin >= (end - begin) / 3:
            n, n_off = n + 1, n_off + is_off
        said = "-" if left is None else f"{left:.0f}"
        print(f"  at {100 * (now - begin) / (end - begin):3.0f} %: {said:>5} s said, {true:4.0f} s true")
    print(f"  from a third on: {n - n_off} of {n} within {SHARE:.0%} and {SECONDS:g} s")
    return n_off == 0


def main(folders: list[str]) -> int:
    return 0 if all([replay(Path(folder)) for folder in folders or FOLDERS]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
