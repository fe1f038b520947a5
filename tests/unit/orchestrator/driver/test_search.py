"""What is run next: no repeats, a baseline for every 4-bit trial that completes, and no end without it.

A `Desk` asks the driver; workers are plain generators.
"""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import chain, product, repeat
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from orchestrator.analysis.finalists import to_evaluate
from orchestrator.driver.driver import Driver
from orchestrator.driver.retries import BACK_OFF_SECONDS
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.ledger.task import Task
from orchestrator.search.proposer import Proposer
from tests.bench.memory_shapes import sizes_of
from tests.support.sweeps import (
    ASHA,
    GRID,
    TPE,
    WORKLOAD,
    Desk,
    breaks,
    completes,
    cost,
    make,
    shuffled,
    similarity,
    space,
    without_similarity,
)
from trainables.cost.predicted_memory import predicted_peak_mib
from trainables.models.families.gpt2 import HUB_SHAPES
from trainables.values.config import FINAL_STATES, TrialConfig

BROKEN = ("oom", "diverged", "failed")
STOPS = st.sampled_from([ASHA, {"type": "hypervolume"}, {"type": "none"}])
SAMPLERS = ("tpe", "nsga2", "gp", "random", "qmc")


def grid(ranks, precisions=("nf4", "16bit"), **changes):
    """A grid over ranks and precisions, ranks slowest."""
    parameters = {"rank": {"values": list(ranks)}, "precision": {"values": list(precisions)}}
    return space(GRID, parameters=parameters, **changes)


def key_of(desk, precision, rank) -> str:
    return WORKLOAD.key(desk.settings.config({"precision": precision, "rank": rank}))


def similarity_of(desk, key):
    return desk.ledger.entry(key).result.similarity


def told(desk) -> Counter:
    """How often the study was told of each trial."""
    return Counter(t.user_attrs["key"] for t in desk.study.trials if "key" in t.user_attrs)


def last_told(desk, key):
    return next(t for t in reversed(desk.study.trials) if t.user_attrs.get("key") == key)


def by_precision(nf4, full):
    """One worker for 4-bit trials, another for 16-bit ones."""
    return lambda task: (nf4 if task.config.precision == "nf4" else full)(task)


@pytest.mark.parametrize("base", [GRID, *({**TPE, "method": m} for m in SAMPLERS)], ids=lambda base: base["method"])
def test_no_trial_is_handed_out_twice(base, tmp_path):
    desk = Desk(tmp_path, make(base, n_trials=12))
    asked = desk.finish()
    assert max(Counter(task.key for task in asked).values()) == 1
    assert set(desk.states.values()) == {"completed"}


def test_a_grid_ends_by_itself_and_covers_every_point(tmp_path):
    desk = Desk(tmp_path, make(GRID, n_trials=100))
    asked = {(task.config.precision, task.config.rank) for task in desk.finish()}
    assert asked == set(product(("nf4", "16bit"), (1, 2, 4)))
    assert desk.driver.finished


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_finite_space_is_run_whole_and_then_the_sweep_ends(method, tmp_path):
    desk = Desk(tmp_path, make(grid((1, 2, 4, 8), method=method), n_trials=100))
    desk.finish()
    assert set(desk.states) == {key_of(desk, *point) for point in product(("nf4", "16bit"), (1, 2, 4, 8))}


@pytest.mark.parametrize("n_trials", [1, 4])
def test_no_more_configs_are_searched_than_asked_for_and_baselines_do_not_count(n_trials, tmp_path):
    desk = Desk(tmp_path, make(grid((1, 2, 4, 8), ("nf4",)), n_trials=n_trials))
    desk.finish()
    assert Counter(t.origin for t in desk.candidates) == {"search": n_trials, "baseline": n_trials}


def test_a_completed_4_bit_trial_brings_its_16_bit_baseline_next(tmp_path):
    desk = Desk(tmp_path, make(grid((1, 2), ("nf4",))))
    nf4, baseline = desk.do(), desk.do()
    assert baseline.config == nf4.config.at_other_precision
    assert baseline.config.precision == "16bit"
    assert desk.ledger.entry(baseline.key).result.origin == "baseline"
    assert similarity_of(desk, nf4.key) == similarity()
    desk.finish()
    assert Counter(task.key for task in desk.asked) == dict.fromkeys(desk.states, 1)


@pytest.mark.parametrize("state", BROKEN)
def test_a_4_bit_trial_that_broke_brings_no_baseline(state, tmp_path):
    desk = Desk(tmp_path, make(grid((1, 2), ("nf4",))))
    desk.finish(partial(breaks, state=state))
    assert set(desk.states.values()) == {state}
    assert len(desk.states) == 2


def test_a_pruned_4_bit_trial_brings_no_baseline(tmp_path):
    desk = Desk(tmp_path, make(grid((1,), ("nf4",))))
    desk.do(stop=True)
    assert desk.take() is None
    assert desk.driver.finished
    assert list(desk.states.values()) == ["pruned"]


def test_a_16_bit_trial_of_the_search_serves_as_baseline_and_is_not_run_again(tmp_path):
    desk = Desk(tmp_path, make(grid((1,), ("16bit", "nf4"))))
    full, nf4 = desk.do(), desk.do()
    assert desk.finish() == []
    assert similarity_of(desk, nf4.key) == similarity()
    assert desk.ledger.entry(full.key).result.origin == "search"


def test_a_pruned_16_bit_trial_is_taken_up_again_as_a_baseline_and_then_spared(tmp_path):
    desk = Desk(tmp_path, make(grid((1,), ("16bit", "nf4"))))
    full = desk.do(stop=True)
    assert desk.states[full.key] == "pruned"
    nf4 = desk.do()
    again = desk.do(stop=True)
    assert again.key == full.key
    assert desk.finish() == []
    assert set(desk.states.values()) == {"completed"}
    assert similarity_of(desk, nf4.key) == similarity()


def test_a_16_bit_trial_is_spared_from_the_moment_its_4_bit_half_completes(tmp_path):
    desk = Desk(tmp_path, make(grid((1,), ("16bit", "nf4"))))
    full, nf4 = desk.take(), desk.take()
    desk.end(nf4)
    desk.end(full, stop=True)
    assert set(desk.states.values()) == {"completed"}


def test_two_finished_halves_without_similarity_bring_one_comparison(tmp_path):
    desk = Desk(tmp_path, make(grid((1,))))
    desk.do(without_similarity)
    desk.do(without_similarity)
    first = desk.take()
    assert desk.asked[-1].kind == "compare"
    assert desk.take() is None, "one comparison at a time for one pair"
    assert not desk.driver.finished
    desk.end(first)
    nf4, full = key_of(desk, "nf4", 1), key_of(desk, "16bit", 1)
    assert (desk.asked[-1].key, desk.asked[-1].baseline_key) == (nf4, full)
    assert similarity_of(desk, nf4) == similarity()
    assert desk.finish() == []
    assert told(desk) == {nf4: 1, full: 1}


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(
    ("asked", "told_as"), [({"min_similarity": 0.95}, TrialState.PRUNED), ({}, TrialState.COMPLETE)]
)
def test_a_comparison_that_fails_is_not_tried_for_ever_and_costs_the_trial_its_place_where_one_is_asked_for(
    lost, asked, told_as, tmp_path
):
    desk = Desk(tmp_path, make(grid((1, 2)), **asked))
    desk.do(without_similarity)
    desk.do(without_similarity)
    comparison = desk.take(breaks)
    if lost:
        for _ in BACK_OFF_SECONDS:
            desk.lose(comparison)
            comparison = desk.take_again(comparison)
    desk.lose(comparison) if lost else desk.end(comparison)
    rest = desk.finish()
    assert [task.kind for task in rest] == ["train", "train"]
    nf4 = key_of(desk, "nf4", 1)
    assert desk.states[nf4] == "completed"
    assert last_told(desk, nf4).state == told_as
    resumed = Desk(tmp_path, desk.settings)
    assert [task.kind for task in resumed.finish(breaks)] == ["compare"], "once more after a resume, and no more"


@pytest.mark.parametrize("state", BROKEN)
def test_a_baseline_that_broke_leaves_its_4_bit_trial_without_similarity_and_the_sweep_ends(state, tmp_path):
    desk = Desk(tmp_path, make(grid((1,), ("nf4",))))
    desk.finish(by_precision(completes, partial(breaks, state=state)))
    assert Counter(desk.states.values()) == {"completed": 1, state: 1}
    assert told(desk)[key_of(desk, "nf4", 1)] == 1


def test_at_most_as_many_tasks_run_as_there_are_slots(tmp_path):
    desk = Desk(tmp_path, make(GRID), n_slots=3)
    assert [desk.take() is not None for _ in range(5)] == [True, True, True, False, False]
    assert not desk.driver.finished


def test_known_cost_is_handed_to_the_next_trial_of_its_cell(tmp_path):
    parameters = {"learning_rate": {"values": [1e-3, 1e-4]}}
    desk = Desk(tmp_path, make(space(parameters=parameters, fixed={"rank": 1, "alpha": 1, "precision": "16bit"})))
    first, second = desk.do(), desk.do()
    assert first.costs == ()
    assert second.costs == (desk.ledger.cost(second.config.cost_key),)
    assert second.costs[0] is not None


# --- resuming


def test_a_fresh_searcher_goes_on_with_what_is_left_and_repeats_nothing(tmp_path):
    settings = make(TPE, n_trials=8)
    desk = Desk(tmp_path, settings)
    for _ in range(4):
        desk.do()
    before = {t.key: t.ended_at for t in desk.candidates if t.state in FINAL_STATES}
    interrupted = {desk.asked[-1].key for _ in range(2) if desk.take()}
    desk.crash()
    resumed = Desk(tmp_path, settings)
    asked = resumed.finish()
    assert {task.key for task in asked[:2]} == interrupted, "what was interrupted comes first"
    assert not {task.key for task in asked} & set(before)
    after = {t.key: t.ended_at for t in resumed.candidates}
    assert {key: after[key] for key in before} == before
    assert sum(t.origin == "search" for t in resumed.candidates) == 8


def test_a_resumed_searcher_owes_the_same_baselines(tmp_path):
    settings = make(grid((1,), ("nf4",)))
    desk = Desk(tmp_path, settings)
    nf4 = desk.do()
    desk.crash()
    resumed = Desk(tmp_path, settings)
    baseline = resumed.do(stop=True)
    assert baseline.config == nf4.config.at_other_precision
    assert resumed.states[baseline.key] == "completed", "a baseline is never stopped"


def test_a_baseline_that_was_interrupted_is_spared_after_a_resume_too(tmp_path):
    settings = make(grid((1,), ("16bit", "nf4")))
    desk = Desk(tmp_path, settings)
    full = desk.do(stop=True)
    desk.do()
    desk.take()  # the pruned one, taken up again
    desk.crash()
    resumed = Desk(tmp_path, settings)
    assert resumed.do(stop=True).key == full.key
    assert resumed.states[full.key] == "completed"


def test_an_adapter_whose_trial_was_cut_off_before_its_end_was_written_does_no_harm(tmp_path):
    settings = make(grid((1,), ("16bit", "nf4")))
    desk = Desk(tmp_path, settings)
    desk.take()
    nf4 = desk.take()
    while not (report := next(desk.running[nf4][1])).is_last:
        pass
    adapter_store.write(tmp_path / "adapters", desk.asked[1].key, report.adapter)
    first = [task.key for task in desk.asked]
    desk.crash()  # the adapter lies on disk, the trial still runs in the ledger
    resumed = Desk(tmp_path, settings)
    assert [task.key for task in resumed.finish()] == first
    assert set(resumed.states.values()) == {"completed"}
    assert similarity_of(resumed, first[1]) == similarity()


def test_a_finished_sweep_has_nothing_more_to_do(tmp_path):
    desk = Desk(tmp_path, make(TPE, n_trials=5))
    desk.finish()
    states = desk.states
    resumed = Desk(tmp_path, desk.settings)
    assert resumed.finish() == []
    assert resumed.states == states


def resumed_after_six(folder, base) -> tuple[Desk, Desk]:
    """A sweep of six trials, of which some break, at its end, and taken up again."""
    desk = Desk(folder, make(base, n_trials=6))
    outcomes = iter([completes, breaks, completes, completes] * 9)
    desk.finish(lambda task: next(outcomes)(task))
    return desk, Desk(folder, desk.settings)


@pytest.mark.parametrize("base", [TPE, GRID], ids=lambda base: base["method"])
def test_the_study_of_a_fresh_searcher_holds_every_settled_trial_once(base, tmp_path):
    desk, resumed = resumed_after_six(tmp_path, base)
    assert told(resumed) == dict.fromkeys(desk.states, 1)
    assert all(t.state.is_finished() for t in resumed.study.trials)
    for key in desk.states:
        ours, theirs = last_told(desk, key), last_told(resumed, key)
        assert (ours.state, ours.params, ours.values, ours.constraints) == (
            theirs.state,
            theirs.params,
            theirs.values,
            theirs.constraints,
        )


@pytest.mark.parametrize("base", [TPE, GRID], ids=lambda base: base["method"])
def test_what_verify_is_shown_of_a_trial_is_what_a_resumed_study_holds(base, tmp_path):
    desk, resumed = resumed_after_six(tmp_path, base)
    for key in desk.states:
        shown, held = Proposer(desk.settings).as_told(desk.ledger.entry(key)), last_told(resumed, key)
        assert shown is not None
        for name in ("state", "params", "values", "constraints", "user_attrs"):
            assert getattr(shown, name) == getattr(held, name), name


# --- what the study is told


def test_a_completed_trial_is_told_with_all_its_losses_and_its_constraint(tmp_path):
    desk = Desk(tmp_path, make(grid((1,)), min_similarity=0.9))
    desk.finish(by_precision(partial(completes, loss=3.0), completes))
    nf4 = last_told(desk, key_of(desk, "nf4", 1))
    assert (nf4.state, nf4.values) == (TrialState.COMPLETE, [1.0, 1.0, 3.0])
    assert nf4.constraints == {"similarity": pytest.approx(0.9 - 0.99), "memory": 0.0}
    assert last_told(desk, key_of(desk, "16bit", 1)).constraints["similarity"] == pytest.approx(-0.1)


def test_a_4_bit_trial_unlike_its_baseline_violates_the_constraint(tmp_path):
    desk = Desk(tmp_path, make(grid((1,)), min_similarity=0.995))
    desk.finish()
    nf4 = last_told(desk, key_of(desk, "nf4", 1))
    assert nf4.state == TrialState.COMPLETE
    assert nf4.constraints["similarity"] > 0


def test_a_4_bit_trial_is_told_only_once_its_similarity_is_known(tmp_path):
    desk = Desk(tmp_path, make(grid((1,)), asynchronous=True))
    nf4 = desk.do()
    assert told(desk) == {}
    baseline = desk.do()
    assert told(desk) == {nf4.key: 1, baseline.key: 1}


def test_a_pruned_trial_is_told_as_pruned_and_not_as_complete(tmp_path):
    desk = Desk(tmp_path, make(TPE, n_trials=1, asynchronous=True))
    task = desk.do(stop=True)
    found = last_told(desk, task.key)
    assert found.state == TrialState.PRUNED
    assert found.constraints == {"similarity": 0.0, "memory": 0.0}


@pytest.mark.parametrize("state", BROKEN)
def test_a_broken_trial_is_told_as_pruned_with_a_violated_constraint(state, tmp_path):
    desk = Desk(tmp_path, make(TPE, n_trials=1, asynchronous=True))
    task = desk.do(partial(breaks, state=state))
    found = last_told(desk, task.key)
    assert found.state == TrialState.PRUNED
    assert found.constraints["similarity"] > 0


@pytest.mark.parametrize("state", BROKEN)
def test_a_broken_trial_is_never_tried_again_not_even_after_a_resume(state, tmp_path):
    desk = Desk(tmp_path, make(GRID))
    outcomes = chain([partial(breaks, state=state)] * 2, repeat(completes))
    first = [task.key for task in desk.finish(lambda task: next(outcomes)(task))]
    assert Counter(first) == dict.fromkeys(desk.states, 1)
    assert Counter(desk.states.values()) == {state: 2, "completed": 4}
    desk.crash()
    assert Desk(tmp_path, desk.settings).finish() == []


@pytest.mark.parametrize("method", ["grid", "tpe"])
@pytest.mark.parametrize("searched", [True, False], ids=["one value", "fixed"])
def test_a_baseline_at_a_precision_that_is_not_searched_is_kept_from_the_study(searched, method, tmp_path):
    parameters = {"rank": {"values": [1, 2]}} | ({"precision": {"values": ["nf4"]}} if searched else {})
    fixed = GRID["fixed"] | ({} if searched else {"precision": "nf4"})
    desk = Desk(tmp_path, make(space(parameters=parameters, fixed=fixed, method=method)))
    desk.finish()
    assert Counter(t.origin for t in desk.candidates) == {"search": 2, "baseline": 2}
    assert set(told(desk)) == {t.key for t in desk.candidates if t.config.precision == "nf4"}


def test_the_same_seed_asks_for_the_same_configs_in_the_same_order(tmp_path):
    runs = []
    for name in ("a", "b"):
        desk = Desk(tmp_path / name, make(TPE, n_trials=20, seed=3))
        runs.append([task.key for task in desk.finish()])
    assert runs[0] == runs[1]
    other = Desk(tmp_path / "c", make(TPE, n_trials=20, seed=4))
    assert [task.key for task in other.finish()] != runs[0]


def test_a_proposer_asked_for_known_points_only_gives_up_where_the_space_has_no_end():
    settings = make(TPE)
    assert Proposer(settings).propose(str, lambda key: True) is None


def test_every_kind_of_parameter_reaches_the_config(tmp_path):
    parameters = {
        "rank": {"distribution": "int_uniform", "min": 1, "max": 9},
        "alpha_ratio": {"distribution": "uniform", "min": 0.5, "max": 2},
        "targets": {"values": [["attn.c_attn"], ["mlp.c_fc", "mlp.c_proj"]]},
        "dropout": {"values": [0.0, 0.1]},
        "rank_stabilized": {"values": [True, False]},
        "precision": {"values": ["nf4", "16bit"]},
    }
    desk = Desk(tmp_path, make(space(TPE, parameters=parameters, fixed={"max_steps": 8}), n_trials=12))
    desk.finish()
    resumed = Desk(tmp_path, desk.settings)
    assert told(resumed) == dict.fromkeys(desk.states, 1)
    configs = [t.config for t in desk.candidates]
    assert all(isinstance(c, TrialConfig) and type(c.rank) is int for c in configs)
    assert len({c.targets for c in configs}) == len({c.rank_stabilized for c in configs}) == 2


# --- what cannot fit the device

MEDIUM = HUB_SHAPES["gpt2-medium"]


def needs_mib(asked_for, rank, precision="16bit") -> float:
    """Predicted for the config of that rank."""
    return predicted_peak_mib(MEDIUM, asked_for.config({"precision": precision, "rank": rank}), WORKLOAD.compute_dtype)


def on_device(folder, asked_for, memory_mib, config=None) -> Desk:
    """A desk whose device has so many MiB, and whose base folder holds this config.json (GPT-2 Medium's)."""
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text(json.dumps(config or {"model_type": "gpt2", **sizes_of(MEDIUM)}))
    ledger = Ledger(folder / "ledger.db")
    ledger.set_fact("device_memory_mib", memory_mib)
    ledger.close()
    desk = Desk(folder, asked_for)
    workload = replace(WORKLOAD, base_folder=str(base))  # no trial's key depends on the folder
    desk.driver = Driver(asked_for, workload, desk.ledger, n_slots=desk.n_slots)
    return desk


def test_what_cannot_fit_the_device_is_refused_and_told_while_the_rest_runs(tmp_path):
    asked_for = make(grid((1, 64, 20_000), ("16bit",)))
    middle = (needs_mib(asked_for, 64) + needs_mib(asked_for, 20_000)) / 2
    desk = on_device(tmp_path, asked_for, middle)
    asked = desk.finish()
    assert [task.config.rank for task in asked] == [1, 64]
    refused = next(t for t in desk.candidates if t.config.rank == 20_000)
    assert refused.state == "refused"
    assert refused.started_at is None
    assert f"{needs_mib(asked_for, 20_000):.0f} MiB (predicted)" in refused.reason
    assert f"{middle:.0f} MiB" in refused.reason
    assert sorted(desk.states.values()) == ["completed", "completed", "refused"]
    study = last_told(desk, refused.key)
    assert study.state == TrialState.PRUNED
    assert study.constraints["similarity"] > 0
    assert told(desk) == dict.fromkeys(desk.states, 1)


def test_a_refused_config_counts_as_searched_and_is_not_looked_at_again_after_a_resume(tmp_path):
    asked_for = make(grid((1, 2, 4), ("nf4",)), n_trials=2)
    desk = on_device(tmp_path, asked_for, 10.0)
    assert desk.finish() == []
    assert desk.driver.finished
    before = {t.key: t.ended_at for t in desk.candidates}
    assert list(desk.states.values()) == ["refused"] * 2
    desk.crash()
    resumed = on_device(tmp_path, asked_for, 10.0)
    assert resumed.finish() == []
    assert {t.key: t.ended_at for t in resumed.candidates} == before


@pytest.mark.parametrize(("n_tolerances", "expected"), [(-1, "completed"), (0.9, "completed"), (2, "refused")])
def test_what_might_fit_by_the_predictions_tolerance_is_run(n_tolerances, expected, tmp_path):
    """The prediction is above the device's memory by so many times what it may be off."""
    asked_for = make(grid((64,), ("16bit",)))
    needs = needs_mib(asked_for, 64)
    desk = on_device(tmp_path, asked_for, needs - n_tolerances * max(0.03 * needs, 32.0))
    desk.finish()
    assert list(desk.states.values()) == [expected]


def test_a_baseline_that_cannot_fit_is_refused_and_its_4_bit_trial_is_settled_without_similarity(tmp_path):
    asked_for = make(grid((1, 2), ("nf4",)))
    desk = on_device(tmp_path, asked_for, (needs_mib(asked_for, 1) + needs_mib(asked_for, 1, "nf4")) / 2)
    asked = desk.finish()
    assert [task.config.precision for task in asked] == ["nf4", "nf4"]
    assert Counter((t.origin, t.state) for t in desk.candidates) == {
        ("search", "completed"): 2,
        ("baseline", "refused"): 2,
    }
    assert set(told(desk)) >= {task.key for task in asked}


UNKNOWN = {
    "a device of unknown memory": (None, None),
    "a base of unknown shape": (10.0, {"model_type": "opt"}),
}


@pytest.mark.parametrize(("memory_mib", "config"), UNKNOWN.values(), ids=UNKNOWN)
def test_where_memory_cannot_be_compared_nothing_is_refused(memory_mib, config, tmp_path):
    desk = on_device(tmp_path, make(GRID), memory_mib, config)
    desk.finish()
    assert set(desk.states.values()) == {"completed"}


# --- any order of events


def takes(evaluation: Task, run: Task) -> bool:
    """Whether a test evaluation waits for a run: its trial's own, and of a 4-bit one all of its config, at both
    precisions and under any seed."""
    one, other = (replace(task.config.at("16bit"), seed=0) for task in (evaluation, run))
    return run.kind != "evaluate" and (
        run.key == evaluation.key or (evaluation.config.precision == "nf4" and one == other)
    )


def begins_and_ends(desk: Desk, outcome, random: Random | None = None) -> list[tuple[str, Task]]:
    """Of all tasks, as they come where the one that began first ends first; or in any order, each lost once perhaps."""
    events: list[tuple[str, Task]] = []
    lost: set = set()
    while not desk.driver.finished:
        if desk.take(outcome):
            events.append(("begin", desk.all_asked[-1]))
        elif desk.running:
            name = random.choice(sorted(desk.running)) if random else next(iter(desk.running))
            task, _ = desk.running[name]
            if random and task.name not in lost and random.random() < 0.15:
                lost.add(task.name)
                desk.lose(name)
            else:
                events.append(("end", task))
                desk.end(name)
        else:
            desk.skipped_seconds += 60
    return events


RATES = {
    "rank": {"values": [1, 2]},
    "learning_rate": {"values": [1e-4, 1e-3]},
    "precision": {"values": ["nf4", "16bit"]},
}


def crossed(task):
    """4 bits lie behind, and are best at another rate than 16 bits."""
    is_nf4, is_high = task.config.precision == "nf4", task.config.learning_rate > 5e-4
    loss = 2.0 + 0.05 * task.config.rank + 0.01 * is_nf4 + 0.005 * (is_nf4 == is_high)
    return completes(task, loss=loss, costs=cost(peak_memory_mib=100.0 * task.config.rank + 1000 * (not is_nf4)))


@pytest.mark.parametrize(("finalist_seeds", "verdict_seeds"), [(1, None), (1, 4), (2, None), (3, None)])
def test_a_finalist_is_evaluated_once_its_runs_have_ended_and_before_another_run_begins(
    finalist_seeds, verdict_seeds, tmp_path
):
    seeds = {"finalist_seeds": finalist_seeds, "verdict_seeds": verdict_seeds, "baseline_seeds": 2}
    asked_for = make(space(GRID, parameters=RATES), objectives=("peak_memory_mib", "eval_loss_nats"), **seeds)
    evaluations = []
    for n_slots in (1, 2, 3, 8):
        desk = Desk(tmp_path / str(n_slots), asked_for, n_slots=n_slots)
        events = begins_and_ends(desk, crossed)
        searched = {trial.key for trial in desk.candidates}
        ends = [i for i, (what, task) in enumerate(events) if what == "end" and task.key not in searched]
        n_waited = 0
        for begin, (what, task) in enumerate(events):
            if what == "begin" and task.kind == "evaluate":
                assert not any(takes(task, later) for _, later in events[begin:]), "a run that it takes came later"
                last = max((i for i in ends if i < begin and takes(task, events[i][1])), default=begin)
                assert {other.kind for what, other in events[last:begin] if what == "begin"} <= {"evaluate"}
                n_waited += last < begin
        assert n_waited, "none had to wait for a run under another seed"
        evaluations.append({task.key: task for task in desk.all_asked if task.kind == "evaluate"})
    for seed in range(3):
        desk = Desk(tmp_path / f"lost {seed}", asked_for, n_slots=1 + seed)
        begins_and_ends(desk, crossed, Random(seed))
        asked = [task for task in desk.all_asked if task.kind == "evaluate"]
        assert all(task == evaluations[0][task.key] for task in asked), "a lost evaluation came to take other runs"
        evaluations.append({task.key: task for task in asked})
    assert all(found == evaluations[0] for found in evaluations)


def test_after_the_search_a_pair_is_compared_before_another_run_begins(tmp_path):
    desk = Desk(tmp_path, make(baseline_seeds=2, verdict_seeds=3), n_slots=1)
    desk.finish(lambda task: without_similarity(task) if task.kind == "train" else completes(task))
    searched = {trial.key for trial in desk.candidates}
    compared = [i for i, task in enumerate(desk.all_asked) if task.kind == "compare" and task.key not in searched]
    assert compared
    for i in compared:
        last_run = [task for task in desk.all_asked[:i] if task.kind == "train"][-1]
        assert last_run.config.at("nf4") == desk.all_asked[i].config


def test_a_lost_evaluation_is_tried_again_after_a_pause_though_a_run_goes_on_meanwhile(tmp_path):
    desk = Desk(tmp_path, make(baseline_seeds=2), n_slots=2)
    while (name := desk.take()) is None or desk.all_asked[-1].kind != "evaluate":
        desk.end(name or next(iter(desk.running)))
    lost, run = desk.all_asked[-1], desk.take()
    while desk.all_asked[-1].kind == "evaluate":
        desk.end(run)
        run = desk.take()
    desk.lose(name)
    while other := desk.take():
        assert desk.all_asked[-1] != lost, "at once"
        desk.end(other)
        desk.skipped_seconds -= 1  # its clock stands still
    desk.skipped_seconds += sum(BACK_OFF_SECONDS)
    assert desk.take()
    assert desk.all_asked[-1] == lost
    assert run in desk.running, "the run still goes on"


def test_a_task_that_ended_is_looked_at_though_one_was_asked_for_between_its_last_report_and_its_end(tmp_path):
    desk = Desk(tmp_path, make(baseline_seeds=2), n_slots=2)
    while desk.take() or desk.running:
        while desk.take():
            pass
        task, reports = desk.running.pop(next(iter(desk.running)))
        for report in reports:
            desk.driver.report(task, report if task.kind == "train" else replace(report, measurement=None, cost=None))
        desk.take()
        desk.driver.ended(task)
    assert all(trial.test_evaluation for trial in to_evaluate(desk.ledger.trials(), desk.settings))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["grid", "tpe"]), st.integers(1, 3), st.integers(0, 3), STOPS)
def test_whatever_happens_the_sweep_ends_with_every_promise_kept(seed, method, n_slots, n_crashes, stop):
    random = Random(seed)
    asked_for = make(grid((1, 2, 4), method=method, early_terminate=stop), n_trials=random.randint(1, 8), seed=seed)
    handed_out: Counter[str] = Counter()
    excuses: Counter[str] = Counter()

    def outcome(task):
        chance = random.random()
        if chance < 0.15:
            return breaks(task, state=random.choice(BROKEN))
        if chance < 0.3:
            return without_similarity(task)
        return completes(task, loss=random.uniform(1, 3))

    with TemporaryDirectory() as folder:
        desk = Desk(Path(folder), asked_for, n_slots)
        for _ in range(n_crashes):
            for _ in range(random.randint(0, 12)):
                trial_id = desk.take(outcome)
                if trial_id is None and desk.running:
                    desk.step(random.choice(sorted(desk.running)), stop=random.random() < 0.2)
            handed_out.update(task.key for task in desk.asked if task.kind == "train")
            excuses.update(task.key for task, _ in desk.running.values() if task.kind == "train")
            excuses.update(key for key, state in desk.states.items() if state == "pruned")
            excuses.update(desk.lost)
            final = {key: state for key, state in desk.states.items() if state in FINAL_STATES - {"pruned"}}
            desk.crash()
            desk = Desk(Path(folder), asked_for, n_slots)
            assert {key: desk.states[key] for key in final} == final
        shuffled(desk, random, outcome)
        handed_out.update(task.key for task in desk.asked if task.kind == "train")
        excuses.update(desk.lost)
        trials = {t.key: t for t in desk.candidates}
        assert set(told(desk)) == set(trials)
        assert all(t.state.is_finished() for t in desk.study.trials)
        desk.ledger.close()
    assert {t.state for t in trials.values()} <= FINAL_STATES
    assert sum(t.origin == "search" for t in trials.values()) <= asked_for.n_trials
    for key, trial in trials.items():
        assert trial.state == "completed" or trial.reason
        if trial.state == "completed" and trial.config.precision == "nf4":
            baseline = trials[WORKLOAD.key(trial.config.at_other_precision)]
            assert baseline.state != "pruned", "a baseline is never left pruned"
        again = trial.config.precision == "16bit"  # pruned, then needed as a baseline
        assert handed_out[key] <= 1 + excuses[key] + again
