"""The search bench: its simulated clock and counts by hand, and each method on a small table."""

from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

import search_spaces
from orchestrator.analysis.pareto import hypervolume
from tests.bench import ask_tell, search
from tests.bench.replay import Job, Outcome, read, recorded, replay
from tests.bench.search_methods import Listed, Ours, RayStock, SyneTune
from tests.bench.search_table import COST_COLUMNS, SPACE_FILE, Table, points
from tests.support.sweeps import REPO, cost

TABLE = REPO / search.TABLE
SMALL = {
    "name": "small",
    "method": "grid",
    "parameters": {
        "rank": {"values": [1, 2, 4]},
        "learning_rate": {"values": [1e-4, 1e-3]},
        "precision": {"values": ["nf4", "16bit"]},
    },
    "fixed": {"alpha": 8, "max_steps": 8},
    "early_terminate": {"type": "hypervolume"},
}


def rung(step: int, loss: float | None, *, mib: float = 10.0, seconds: float = 1.0, reason: str | None = None):
    """A row of a table, as it is read back."""
    memory = {"peak_memory_mib": mib, "reserved_memory_mib": mib}
    times = dict.fromkeys(("seconds_per_step", "seconds_per_step_p10", "seconds_per_step_p90"), seconds)
    own = {"step": step, "train_loss_nats": loss, "eval_loss_nats": loss, "reason": reason}
    return {**memory, **times, **own, "tokens_per_second": 1.0, "device": "CPU"}


def two_points(reason: str | None = None):
    """A cheap poor one of 4 s and a dear good one of 8 s."""
    cheap = [rung(2, 3.0), rung(4, 2.0)]
    dear = [rung(2, 2.0, mib=20, seconds=2), rung(4, None if reason else 1.0, mib=20, seconds=2, reason=reason)]
    return recorded(("rank",), {(1,): cheap, (2,): dear})


def small_table():
    space = search_spaces.parse(SMALL, source="test")
    rungs = {}
    for rank, rate, precision in product((1, 2, 4), (1e-4, 1e-3), ("nf4", "16bit")):
        mib, loss = 10.0 * rank + 100 * (precision == "16bit"), 3.0 - rank / 8 - 1e3 * rate
        rungs[rank, rate, precision] = [rung(step, loss + 1 / step, mib=mib) for step in (1, 2, 4, 8)]
    return space, recorded(tuple(space.parameters), rungs)


def run(table, method, n_workers=1, share=1.0, seconds=inf):
    return replay(table, method, wanted_share=share, n_workers=n_workers, max_seconds=seconds)


class StopsFirst:
    """Takes both points, and stops the first one at its first rung."""

    def __init__(self) -> None:
        self._left = [(2,), (1,)]

    def ask(self, now):
        return Job(self._left.pop(0), None) if self._left else None

    def report(self, job, row, *, last):
        return last or job.values != (2,)


def test_one_worker_does_one_trial_after_the_other():
    outcome = run(two_points(), Listed(iter([(1,), (2,)])))
    assert outcome == Outcome(gpu_seconds=12.0, n_trials=2, n_completed=2, share=pytest.approx(1.0), lost_share=0.0)


def test_two_workers_are_both_paid_until_the_last_trial_ends():
    assert run(two_points(), Listed(iter([(1,), (2,)])), n_workers=2).gpu_seconds == 16.0


def test_what_a_stopped_trial_showed_counts_for_nothing_but_its_time_does():
    outcome = run(two_points(), StopsFirst(), share=0.01)
    assert outcome.gpu_seconds == 4.0 + 4.0
    assert (outcome.n_trials, outcome.n_completed) == (2, 1)


def test_a_member_of_the_front_that_was_stopped_is_lost_for_good_once_nothing_is_left_to_take_up():
    assert two_points().front == {(1,), (2,)}
    outcome = run(two_points(), StopsFirst(), share=inf)
    assert (outcome.gpu_seconds, outcome.n_completed, outcome.lost_share) == (None, 1, 0.5)
    found = search.losses([outcome, run(two_points(), Listed(iter([(1,), (2,)])), share=inf)])
    assert found["lost_members_share"] == 0.25
    assert found["lost_members_share_range"] == [0.0, 0.5]
    assert found["lost_volume_share"] == pytest.approx((1 - outcome.share) / 2)


def test_a_trial_that_diverges_is_never_a_find():
    outcome = run(two_points("diverged: here"), Listed(iter([(2,)])))
    assert (outcome.gpu_seconds, outcome.n_completed, outcome.share) == (None, 0, 0.0)


def test_a_search_is_given_up_when_its_time_is_over():
    assert run(two_points(), Listed(iter([(1,), (2,)])), seconds=5.0).gpu_seconds is None


def test_what_there_is_to_find_is_the_volume_of_all_full_trials_within_a_point_beyond_their_front():
    table = two_points()
    assert table.reference == pytest.approx((21.0, 2.1, 2.1))
    boxes = hypervolume([(10, 1, 2), (20, 2, 1)], table.reference)
    assert table.volume == pytest.approx(boxes) == pytest.approx(11 * 1.1 * 0.1 + 1 * 0.1 * 1.1 - 1 * 0.1 * 0.1)
    assert table.seconds == 12.0


@pytest.mark.parametrize("name", ["ours", "ray", "syne"])
def test_each_library_finds_a_small_table_s_front(name, tmp_path):
    space, table = small_table()
    if name == "syne":
        pytest.importorskip("syne_tune", reason="make bench ARGS=search installs it")
    method = {
        "ours": lambda: Ours(space, 2, 0, tmp_path),
        "ray": lambda: RayStock(space, 0, table.max_steps),
        "syne": lambda: SyneTune(space, 0, table.max_steps),
    }[name]()
    outcome = run(table, method, n_workers=2, share=0.5, seconds=20 * table.seconds)
    assert outcome.share >= 0.5
    assert 0 < outcome.gpu_seconds <= 20 * table.seconds


def test_ours_brings_baselines_and_ends_by_itself(tmp_path):
    space, table = small_table()
    method = Ours(space, 2, 0, tmp_path)
    run(table, method, n_workers=2, share=2.0, seconds=1e9)
    trials = [trial for trial in method._ledger.trials() if trial.is_of_search]
    assert len(trials) == space.n_points
    completed = {trial.config for trial in trials if trial.state == "completed"}
    assert all(c.at_other_precision in completed for c in completed if c.precision == "nf4")


def test_a_time_that_was_never_reached_is_endless_in_the_quartiles():
    reached, never = Outcome(gpu_seconds=4.0, n_trials=1, n_completed=1, share=1.0, lost_share=0.0), None
    never = replace(reached, gpu_seconds=None, share=0.5)
    found = search.summary([reached, reached, never, never])
    assert found["gpu_seconds_quartiles"] == [4.0, None, None]
    assert (found["n_reached"], found["n_seeds"]) == (2, 4)


def test_the_best_peer_is_the_one_with_the_least_median():
    medians = {"ours": 10.0, "random": 40.0, "ray": None, "syne": 20.0}
    results = {name: {"gpu_seconds_quartiles": [0, median, 0]} for name, median in medians.items()}
    assert search.verdict(results) == {"of_random": 0.25, "of_best_peer": 0.5}


def test_a_table_goes_on_from_its_file(tmp_path):
    space = search_spaces.parse(SMALL, source="test")
    (first, config), (second, _), *_ = points(space, 1)
    table = Table(tmp_path / "t.parquet", space)
    rows = [{n: v for n, v in rung(step, 2.0, mib=1.0).items() if n not in COST_COLUMNS} for step in (1, 8)]
    table.add(first, rows, cost(seconds_per_step_p90=2.0))
    table.save()
    again = Table(tmp_path / "t.parquet", space)
    assert first in again
    assert second not in again
    assert again.costs({first: config})[config.cost_key] == cost(seconds_per_step_p90=2.0)


def test_the_recorded_table_is_whole_and_small():
    space = search_spaces.load(str(SPACE_FILE))
    tables = read(TABLE, space)
    assert space.n_points >= 200
    assert sorted(tables) == [0, 1, 2]
    assert {row["step"] for table in tables.values() for rows in table.rungs.values() for row in rows} == {
        5,
        10,
        20,
        40,
    }
    assert all(len(rows) == 4 for table in tables.values() for rows in table.rungs.values())
    assert TABLE.stat().st_size <= 2 * 2**20


def test_a_point_missing_from_a_seed_leaves_that_seed_out(tmp_path):
    space = search_spaces.parse(SMALL, source="test")
    table = Table(tmp_path / "t.parquet", space)
    whole = list(points(space, 2))[:-1]
    for number, (point, _) in enumerate(whole):
        table.add(point, [rung(8, 1.0 + number, mib=10 + number)], cost())
    table.save()
    assert list(read(tmp_path / "t.parquet", space)) == [0]


def test_ask_and_tell_are_timed_behind_a_filled_ledger():
    found = ask_tell.measured(20)
    assert found["n_trials"] == 20
    assert 0 < found["ask_ms_p50"] < found["ask_and_tell_ms_p90"] * 2
    assert np.isfinite(found["resume_seconds"])
