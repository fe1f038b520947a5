"""A step's time is measured again where that tells its noise, and what earlier sweeps measured counts."""

from dataclasses import asdict, replace
from itertools import count

import pytest

from orchestrator.analysis.noise import MIN_REPEATS, REPEATS, noise_of
from orchestrator.driver import time_repeats
from orchestrator.settings import stored, sweep_folder
from tests.support.sweeps import GRID, WORKLOAD, Desk, completes, cost, make
from trainables.cost.device import versions

PAIR = GRID | {"parameters": {"rank": {"values": [4]}}, "fixed": GRID["fixed"] | {"precision": "nf4"}}
DEVICE = "NVIDIA H200"


def on_gpu(**values):
    return make(PAIR, **{"device": "cuda", "min_similarity": 0.0, **values})


def worker(**other_versions):
    """Measures a step whose cost key it is not told of, and never finds the same time twice."""
    clock = count()

    def work(task):
        known = task.costs[0] if task.costs else cost(device=DEVICE, seconds_per_step=1.0 + next(clock) / 100)
        for report in completes(task, costs=known):
            environment = {"device": DEVICE, **versions(), **other_versions} if report.is_last else {}
            yield replace(report, environment=environment)

    return work


def finished(root, name: str = "a", work=None, **values) -> Desk:
    asked = on_gpu(name=name, **values)
    folder = sweep_folder(name, root)
    stored.save(asked, folder)
    desk = Desk(folder, asked, 1)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(work or worker())
    return desk


def test_the_seed_replicates_of_one_cost_key_measure_its_step_anew_and_its_noise_is_known_then(tmp_path):
    desk = finished(tmp_path, baseline_seeds=5)
    trained = [task for task in desk.all_asked if task.kind == "train"]
    again = [task for task in trained if not task.costs]
    (reference,) = {task.config.cost_key for task in again[2:]}
    assert len(again) == 2 + MIN_REPEATS - 1, "each cost key once, and the reference twice more"
    repeats = desk.ledger.fact(REPEATS)
    assert [(one["cost_key"], one["device"]) for one in repeats] == [(reference, DEVICE)] * (MIN_REPEATS - 1)
    (noise,) = noise_of(desk.ledger.trials(), ("seconds_per_step",), repeats)
    assert noise.n_degrees == MIN_REPEATS - 1
    times = {t.cost.seconds_per_step for t in desk.ledger.trials() if t.config.cost_key == reference}
    assert len(times) == 1, "all trials of a cost key keep the one time that was stored for it"


def test_one_cost_key_is_timed_at_start_middle_and_end_of_a_sweep(tmp_path):
    """Ranks 4 and 8 by many learning rates: each trial after the middle is of a cost key that is known."""
    rates = {"learning_rate": {"values": [1e-4 * n for n in range(1, 7)]}}
    space = PAIR | {"parameters": {"rank": {"values": [4]}} | rates, "fixed": PAIR["fixed"] | {"precision": "16bit"}}
    space["fixed"].pop("learning_rate", None)
    asked = make(space, device="cuda", name="a", n_trials=6, finalist_seeds=3)
    stored.save(asked, sweep_folder("a", tmp_path))
    desk = Desk(sweep_folder("a", tmp_path), asked, 1)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(worker())
    trained = [task.key for task in desk.all_asked if task.kind == "train"]
    again = [trained.index(task.key) for task in desk.all_asked if task.kind == "train" and not task.costs]
    assert again == [0, 3, 6], "the first trial, the first of the search's second half, the first seed replicate"
    (noise,) = noise_of(desk.ledger.trials(), ("seconds_per_step",), desk.ledger.fact(REPEATS))
    assert noise.n_degrees == MIN_REPEATS - 1


def test_where_time_is_no_objective_no_step_is_measured_anew(tmp_path):
    desk = finished(tmp_path, objectives=("peak_memory_mib", "eval_loss_nats"))
    assert sum(not task.costs for task in desk.all_asked if task.kind == "train") == 2
    assert desk.ledger.fact(REPEATS) is None


def earlier(root, **values) -> list:
    desk = Desk(sweep_folder("b", root), on_gpu(name="b", **values), 1)
    time_repeats.keep_earlier(desk.settings, WORKLOAD, root, {DEVICE}, desk.ledger)
    return desk.ledger.fact(REPEATS)


def test_what_an_earlier_sweep_measured_counts_and_is_not_taken_for_this_sweep_s_own(tmp_path):
    first = finished(tmp_path)
    found = earlier(tmp_path)
    times = {one["seconds_per_step"] for one in found}
    assert len(found) == len(times) == 2 + MIN_REPEATS - 1
    assert not any(one[time_repeats.OWN] for one in found)
    (noise,) = noise_of([], ("seconds_per_step",), found)
    assert noise.sd == noise_of(first.ledger.trials(), ("seconds_per_step",), first.ledger.fact(REPEATS))[0].sd


@pytest.mark.parametrize("values", [{"device": "cpu"}, {"reuse": False}, {"objectives": ("eval_loss_nats",)}])
def test_nothing_counts_on_a_cpu_without_reuse_or_where_time_is_no_objective(values, tmp_path):
    finished(tmp_path)
    assert earlier(tmp_path, **values) is None


def test_times_of_another_device_base_or_version_do_not_count(tmp_path):
    finished(tmp_path)
    asked = on_gpu(name="b")
    for name, workload, kinds in (
        ("c", WORKLOAD, {"Tesla T4"}),
        ("d", replace(WORKLOAD, base_fingerprint="0" * 64), {DEVICE}),
    ):
        desk = Desk(sweep_folder(name, tmp_path), asked, 1)
        time_repeats.keep_earlier(asked, workload, tmp_path, kinds, desk.ledger)
        assert desk.ledger.fact(REPEATS) == []
    finished(tmp_path / "old", work=worker(torch="0.0.1"))
    assert earlier(tmp_path / "old") == []


@pytest.mark.parametrize(
    ("device", "objectives", "alone"),
    [
        ("cuda", ("peak_memory_mib", "eval_loss_nats"), True),  # a step's time is reported
        ("cpu", ("peak_memory_mib", "eval_loss_nats"), False),
        ("cpu", ("seconds_per_step", "eval_loss_nats"), True),
    ],
)
def test_a_step_is_timed_alone_on_a_gpu_and_on_a_cpu_where_time_is_an_objective(device, objectives, alone):
    assert time_repeats.is_timed(make(PAIR, device=device, objectives=objectives)) is alone
