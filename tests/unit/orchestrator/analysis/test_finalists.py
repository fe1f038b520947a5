"""Which trials get seed replicates, and which runs those need."""

from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.analysis.finalists import (
    finalists,
    other_seeds,
    paired_runs,
    runs_of,
    to_evaluate,
    under_seeds,
    verdict_trial,
    wanted,
)
from orchestrator.analysis.front import front_of
from tests.support.sweeps import GRID, Desk, breaks, completes, cost, make, measurement, similarity, trial
from trainables.values.config import TrialConfig

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
SETTINGS = make(objectives=("eval_loss_nats",))


def lossy(number: int, loss: float, **values):
    return trial(number, history=(measurement(200, loss),), **values)


def test_seeds_follow_each_other_and_wrap_at_the_largest():
    config = replace(NF4, seed=2**32 - 2)
    assert [c.seed for c in under_seeds(config, 3)] == [2**32 - 1, 0, 1]


def test_the_best_compared_4_bit_trial_is_a_finalist_where_none_is_on_the_front():
    on_front = lossy(0, 1.0)
    worse = [lossy(n, loss, config=replace(NF4, rank=n), similarity=similarity()) for n, loss in ((1, 3.0), (2, 2.0))]
    alone = lossy(3, 1.5, config=replace(NF4, rank=8))  # never compared
    assert [t.number for t in finalists([on_front, *worse, alone], SETTINGS)] == [0, 2]


def test_with_repeats_the_best_trial_of_each_precision_and_rank_is_a_finalist():
    configs = [TrialConfig(precision="16bit", rank=rank, alpha=a) for rank in (1, 2) for a in (1, 2)]
    found = [lossy(n, loss, config=c) for n, (c, loss) in enumerate(zip(configs, (4.0, 3.0, 1.0, 2.0), strict=True))]
    assert [t.number for t in finalists(found, SETTINGS)] == [2]
    assert [t.number for t in finalists(found, make(objectives=("eval_loss_nats",), finalist_seeds=3))] == [1, 2]


def test_seed_replicates_make_no_finalist():
    luckier = [lossy(1, 0.1, origin="replicate"), lossy(2, 0.2, origin="baseline replicate")]
    assert [t.number for t in finalists([lossy(0, 1.0), *luckier], SETTINGS)] == [0]


def test_a_4_bit_finalist_wants_its_baseline_under_other_seeds_and_repeats_want_the_finalist_itself():
    found = [lossy(0, 1.0, config=NF4, similarity=similarity())]
    runs = wanted(found, make(objectives=("eval_loss_nats",), finalist_seeds=3, baseline_seeds=2))
    assert [(run.origin, run.config.precision, run.config.seed) for run in runs] == [
        ("replicate", "nf4", 1),
        ("replicate", "nf4", 2),
        ("replicate", "nf4", 3),
        ("baseline replicate", "16bit", 1),
        ("baseline replicate", "16bit", 2),
    ]
    assert {replace(run.config, seed=0, precision="nf4") for run in runs} == {NF4}


def test_ranks_are_told_of_by_three_fresh_seeds_of_the_best_config_of_each():
    configs = [TrialConfig(precision="16bit", rank=rank, alpha=a) for rank in (1, 2) for a in (1, 2)]
    found = [lossy(n, loss, config=c) for n, (c, loss) in enumerate(zip(configs, (4.0, 3.0, 1.0, 2.0), strict=True))]
    for asked, seeds in ((3, {1: [1, 2, 3], 2: [1, 2, 3]}), (2, {1: [1], 2: [1]})):
        settings = make(objectives=("eval_loss_nats",), finalist_seeds=asked)
        runs = wanted(found, settings)
        assert {rank: [r.config.seed for r in runs if r.config.rank == rank] for rank in (1, 2)} == seeds
        fresh = [lossy(9 + n, 1.0, config=run.config, origin="replicate") for n, run in enumerate(runs)]
        assert {run.config for run in runs} <= {t.config for t in to_evaluate([*found, *fresh], settings)}


def searched(n_others: int) -> list:
    """A compared 4-bit finalist and its baseline, and so many 16-bit trials of the same 200 steps, all worse."""
    pair = [lossy(0, 1.0, config=NF4, similarity=similarity()), lossy(1, 1.1, config=NF4.at_other_precision)]
    others = [lossy(2 + n, 3.0, config=replace(pair[1].config, rank=20 + n)) for n in range(n_others)]
    return [*pair, *others]


def wanted_seeds(trials, precision: str, **asked) -> list[int]:
    runs = wanted(trials, make(objectives=("eval_loss_nats",), **asked))
    return [run.config.seed for run in runs if run.config.precision == precision]


@pytest.mark.parametrize(("n_others", "seeds"), [(10, []), (11, [1, 2])])
def test_the_verdicts_seeds_are_run_where_both_precisions_take_under_a_third_of_the_search(n_others, seeds):
    """Two fresh seeds are 4 runs, so that the search must have more than 12 of the same cost."""
    found = searched(n_others)
    assert wanted_seeds(found, "nf4") == seeds
    assert wanted_seeds(found, "16bit") == [1, 2]  # for behaviour, in any case
    reused = [replace(t, train_seconds=None, reason="reused: sweep x ran it") for t in found]
    assert wanted_seeds(reused, "nf4") == seeds


def test_the_number_of_the_verdicts_seeds_can_be_asked_for():
    assert wanted_seeds(searched(0), "nf4", verdict_seeds=4) == [1, 2, 3]
    assert wanted_seeds(searched(20), "nf4", verdict_seeds=1) == []


def test_only_the_best_compared_4_bit_finalist_gets_seeds_for_its_verdict():
    better = lossy(90, 0.5, config=replace(NF4, rank=16))  # its baseline did not fit
    runs = wanted([*searched(11), better], make(objectives=("eval_loss_nats", "peak_memory_mib")))
    assert {run.config.rank for run in runs if run.origin == "replicate"} <= {4}


def test_the_baseline_of_the_verdicts_trial_is_run_under_other_seeds_first_as_most_evaluations_wait_for_it():
    ranks = {8: (0, 1.5), 1: (1, 2.0), 16: (2, 1.0)}  # the last has the lowest loss
    found = [
        lossy(number, loss, config=replace(NF4, rank=rank), similarity=similarity(), cost=cost(peak_memory_mib=rank))
        for rank, (number, loss) in ranks.items()
    ]
    runs = wanted(found, make(objectives=("peak_memory_mib", "eval_loss_nats")))
    assert [run.config.rank for run in runs if run.origin == "baseline replicate"] == [16, 16, 1, 1, 8, 8]


def test_more_seeds_asked_for_after_the_end_are_trained_compared_and_evaluated_as_pairs(tmp_path):
    first = Desk(tmp_path, make(GRID))
    first.finish(lambda task: completes(task, loss=2.0 if task.config.precision == "nf4" else 2.1))
    before = {t.key for t in first.ledger.trials()}
    first.crash()
    again = Desk(tmp_path, make(GRID, verdict_seeds=3))
    again.finish()
    trials = again.ledger.trials()
    chosen = verdict_trial(trials, again.settings)
    pairs = paired_runs(chosen, trials)
    assert [run.config.seed for run in pairs] == [0, 1, 2]
    assert all(run.test_evaluation.comparison for run in pairs)
    assert {run.key for run in pairs[1:]}.isdisjoint(before)


def test_other_seeds_of_a_baseline_are_found_nearest_first_and_not_the_baseline_itself():
    baseline = NF4.at_other_precision
    found = [lossy(n, 1.0, config=replace(baseline, seed=seed)) for n, seed in enumerate((0, 3, 1, 2))]
    assert [t.config.seed for t in other_seeds(trial(9, config=NF4), found, 2)] == [1, 2]


def test_a_finalists_runs_begin_with_its_own_and_leave_out_what_did_not_complete():
    first = lossy(0, 1.0)
    others = [lossy(n, 1.1, config=replace(first.config, seed=n), origin="replicate") for n in (1, 2)]
    broken = replace(others[0], state="diverged")
    settings = make(objectives=("eval_loss_nats",), finalist_seeds=3)
    assert [t.number for t in runs_of(first, [first, *others], settings)] == [0, 1, 2]
    assert [t.number for t in runs_of(first, [first, broken, others[1]], settings)] == [0, 2]


def test_a_sweep_ends_with_every_finalist_evaluated_and_every_seed_replicates_run_once(tmp_path):
    desk = Desk(tmp_path, make(GRID, finalist_seeds=3, baseline_seeds=2))
    desk.finish(lambda task: completes(task, loss=2.0 if task.config.precision == "nf4" else 2.1))
    trials = desk.ledger.trials()
    assert all(t.test_evaluation for t in to_evaluate(trials, desk.settings))
    assert max(Counter(task.key for task in desk.all_asked if task.kind == "train").values()) == 1
    assert {run.config for run in wanted(trials, desk.settings)} <= {t.config for t in trials}
    evaluated = [t for t in finalists(trials, desk.settings) if t.config.precision == "nf4"]
    assert evaluated
    assert all(t.test_evaluation.comparison for t in evaluated)
    asked = [task for task in desk.all_asked if task.kind == "evaluate" and task.config.precision == "nf4"]
    assert all(len(task.replicate_keys) == 2 for task in asked if task.config.seed == 0)


def test_a_sweep_that_crashed_after_every_task_evaluates_the_same_trials_and_repeats_nothing(tmp_path):
    settings = make(GRID, finalist_seeds=2)
    desks = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        desks[name] = Desk(tmp_path / name, settings)
    desks["whole"].finish()
    desk, done = desks["cut"], Counter()
    while (trial_id := desk.take()) is not None:
        desk.end(trial_id)
        done[desk.all_asked[-1].kind, desk.all_asked[-1].key] += 1
        desk.crash()
        desk = Desk(tmp_path / "cut", settings)
    assert desk.driver.finished
    assert max(done.values()) == 1
    ends = [
        {(t.key, t.state, t.origin, t.test_evaluation is not None) for t in d.ledger.trials()}
        for d in (desk, desks["whole"])
    ]
    assert ends[0] == ends[1]


def test_a_test_evaluation_that_fails_is_not_asked_for_again_and_the_sweep_ends(tmp_path):
    desk = Desk(tmp_path, make(GRID))
    desk.finish(lambda task: breaks(task, state="oom") if task.kind == "evaluate" else completes(task))
    evaluated = Counter(task.key for task in desk.all_asked if task.kind == "evaluate")
    assert evaluated
    assert set(evaluated.values()) == {1}
    assert {t.state for t in desk.ledger.trials()} == {"completed"}
    assert not any(t.test_evaluation for t in desk.ledger.trials())


def test_runs_under_other_seeds_are_told_to_nobody_and_are_on_no_front(tmp_path):
    desk = Desk(tmp_path, make(GRID, finalist_seeds=2))
    desk.finish(lambda task: completes(task, loss=2.0 if task.config.seed == 0 else 0.1))
    others = {t.key for t in desk.ledger.trials() if t.config.seed != 0}
    assert others
    assert not others & {t.user_attrs.get("key") for t in desk.study.trials}
    assert not others & front_of(desk.ledger.trials(), desk.settings).keys
