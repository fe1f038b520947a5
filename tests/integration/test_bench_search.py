"""The search bench: its simulated clock and counts by hand, and each method on a small table."""

import subprocess
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

import search_spaces
from orchestrator.analysis.pareto import hypervolume, pareto_mask
from tests.bench import ask_tell, landscapes, search, search_landscapes, search_peers
from tests.bench.replay import Job, Outcome, events, growth, read, recorded, replay
from tests.bench.search_methods import Listed, Ours, RayStock, SyneTune
from tests.bench.search_peers import Moasha, ParetoRankMedian, epsilon_net, nondomination_ranks
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


def test_non_domination_ranks_are_those_of_peeling_off_fronts():
    rows = np.random.default_rng(0).integers(0, 5, (30, 3)).astype(float)
    ranks = np.array(nondomination_ranks(rows))
    left, rank = np.arange(len(rows)), 0
    while len(left):
        front = pareto_mask(rows[left])
        assert (ranks[left[front]] == rank).all()
        left, rank = left[~front], rank + 1


def test_an_epsilon_net_begins_at_an_end_and_goes_to_the_farthest_each_time():
    assert epsilon_net(np.array([[0.0, 4.0], [1.0, 3.0], [3.9, 0.1], [4.0, 0.0], [2.2, 1.8]])) == [0, 3, 4, 1, 2]


def test_the_pareto_rank_median_rule_ends_a_trial_that_is_dominated_more_often_than_half_of_the_ended_ones():
    rule = ParetoRankMedian()
    for number, loss in enumerate((1.0, 2.0, 3.0, 4.0, 5.0)):
        assert not rule.stops(number, 5, (loss, loss))
        rule.ended(number)
    assert not rule.stops(5, 5, (0.5, 0.5))
    assert rule.stops(6, 5, (9.0, 9.0))
    assert not rule.stops(7, 5, (9.0, 0.1)), "it dominates nothing and nothing dominates it"


def test_moasha_s_rule_lets_the_better_half_of_a_rung_go_on():
    rule = Moasha(landscapes.space(), 0)
    row = rung(5, 1.0)
    goes_on = [rule.report(Job((), None), {**row, "eval_loss_nats": loss}, last=False) for loss in (3, 2, 4, 5, 1)]
    assert goes_on == [True, True, False, False, True]


@pytest.mark.parametrize("kind", landscapes.KINDS)
def test_a_landscape_is_the_same_for_the_same_seed_and_holds_its_best_where_its_kind_says(kind):
    one, again, other = (landscapes.draw(kind, seed) for seed in (1, 1, 2))
    assert one == again != other
    table = landscapes.table(one)
    best = dict(zip(one.names, min(table.front, key=lambda values: one.end_nats(point_of(one, values))), strict=True))
    shape = landscapes.KINDS[kind]
    assert abs(np.log2(best["rank"]) - np.mean(shape.log2_rank)) <= 2.5
    if shape.cliff is None:
        assert shape.rate[0] / 3 <= best["learning_rate"] <= shape.rate[1] * 3
    values = tuple(best.values())
    assert table.rungs[values] == landscapes.table(again).rungs[values]
    assert table.rungs[values] != landscapes.table(other).rungs[values]
    assert [row["step"] for row in table.rungs[values]] == [25, 50, 100, 200]


def point_of(landscape, values) -> dict:
    return dict(zip(landscape.names, values, strict=True))


def test_beyond_the_cliff_every_trial_diverges_and_before_it_none():
    drawn = landscapes.draw("cliff of divergence", 3)
    points = search_peers.Points(landscapes.space(), 0)
    for _ in range(200):
        values = points.ask(0).values
        is_beyond = drawn.off_rate(point_of(drawn, values)) > landscapes.KINDS["cliff of divergence"].cliff
        assert bool(drawn.rows(values)[-1]["reason"]) == is_beyond


def test_what_the_same_trials_would_have_found_without_stopping_is_what_stopping_lost():
    found = growth(two_points(), StopsFirst(), (1, 2), 1)
    assert (found[1].lost_share, found[1].kept_share) == (1.0, 0.0)
    assert (found[1].gpu_seconds, found[2].gpu_seconds) == (4.0, 8.0)
    assert (found[2].lost_share, found[2].n_completed) == (0.5, 1)
    whole = growth(two_points(), Listed(iter([(2,), (1,)])), (1, 2), 1)[2]
    assert (whole.lost_share, whole.kept_share, whole.share) == (0.0, 1.0, pytest.approx(1.0))


def test_baselines_come_on_top_of_the_trials_asked_for_and_are_paid_for(tmp_path):
    space, table = small_table()
    found = growth(table, Ours(space, 1, 0, tmp_path, n_trials=6, method="random"), (3, 6), 1)
    asked = Ours(space, 1, 0, tmp_path / "again", n_trials=6, method="random")
    jobs = [event.job for event in events(table, asked, 1) if event.kind == "begun"]
    baselines = [job for job in jobs if not job.is_proposal]
    assert sum(job.is_proposal for job in jobs) == 6
    assert baselines
    assert found[3].gpu_seconds < found[6].gpu_seconds


def test_the_median_s_interval_holds_the_median_and_shrinks_with_more_seeds():
    few, many = (np.random.default_rng(0).normal(1, 1, n).tolist() for n in (10, 1000))
    for values in (few, many):
        low, high = search_landscapes.interval(values)
        assert low <= np.median(values) <= high
    assert np.subtract(*search_landscapes.interval(many)[::-1]) < np.subtract(*search_landscapes.interval(few)[::-1])


def test_a_commit_s_hash_is_the_seed_of_the_reported_landscapes():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=REPO)
    assert search.seed_of("HEAD") == int(head.stdout[:8], 16)
    assert search.seed_of(None) == search.DEVELOPMENT_SEED


def test_every_method_runs_on_a_landscape_and_the_table_says_of_each_target_whether_it_is_met():
    names, kind = ("late curves",), dict(base_seed=1, n_seeds=1, table=REPO / search.TABLE, n_workers=1, processes=1)
    results = search_landscapes.measured(names, search_landscapes.METHODS, **kind)
    text = "\n".join(search_landscapes.lines(results, names))
    assert all(method in text for method in search_landscapes.METHODS)
    assert text.count(": met") + text.count(": MISSED") == 2 * (len(search_landscapes.PEERS) + 3)
