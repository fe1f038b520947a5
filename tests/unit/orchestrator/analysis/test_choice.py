"""Which one config: the best, the knee, either within a memory budget, and the nearest where none counts."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.choice import BEST, KNEE, LOWEST, choose, how_sure, knee, loss_noise, lowest, mib_of, stairs
from orchestrator.analysis.front import front_of
from orchestrator.analysis.infeasible import nothing_counts
from orchestrator.ledger.task import TaskReport
from orchestrator.report import export
from orchestrator.report.content import report_of
from orchestrator.settings import stored, sweep_folder
from tests.support.in_process import called
from tests.support.sweeps import (
    GRID,
    WORKLOAD,
    Desk,
    breaks,
    completes,
    cost,
    make,
    measurement,
    similarity,
    snapshot,
    space,
    trial,
)
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

OBJECTIVES = ("peak_memory_mib", "eval_loss_nats")
ASKED = make(objectives=OBJECTIVES)
POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


def at(points, factor: float = 1.0):
    found = []
    for n, (x, y) in enumerate(points):
        config = TrialConfig(precision="16bit", rank=n + 1, alpha=8)
        shown = {"history": (measurement(200, float(y)),), "cost": cost(peak_memory_mib=x * factor)}
        found.append(trial(n, config=config, **shown))
    return found


def within(trials, budget: float):
    return [trial for trial in trials if trial.cost.peak_memory_mib <= budget]


def costly(task) -> Iterator[TaskReport]:
    """Half as much again for twice the rank, and as much less loss for each."""
    peaks = {1: 1.0, 2: 2.0, 4: 9.0}
    return completes(task, loss=2.0 - task.config.rank / 10, costs=cost(peak_memory_mib=peaks[task.config.rank]))


@given(POINTS, st.sampled_from([1.0, 1024.0]))
def test_the_knee_is_the_member_nearest_to_the_ideal_whatever_the_unit(points, factor):
    front = front_of(at(points, factor), ASKED)
    on = [points[m.number] for m in front.members]
    least, most = [min(c) for c in zip(*on, strict=True)], [max(c) for c in zip(*on, strict=True)]

    def away(point):
        return sum(((v - a) / (b - a or 1)) ** 2 for v, a, b in zip(point, least, most, strict=True)) ** 0.5

    assert away(points[knee(front).number]) == pytest.approx(min(map(away, on)))


@given(POINTS, st.integers(0, 10))
def test_the_last_stair_that_fits_is_the_best_within_any_budget(points, budget):
    trials = at(points)
    steps = [step[0] for step in stairs(trials) if step[0].cost.peak_memory_mib <= budget]
    assert (steps[-1] if steps else None) == lowest(within(trials, budget))


@given(POINTS, st.integers(0, 10), st.integers(0, 3))
def test_the_last_stair_that_fits_loses_no_more_than_the_margin_to_the_best_of_the_budget(points, budget, margin):
    trials = at(points)
    steps = [step for step in stairs(trials, margin) if step[0].cost.peak_memory_mib <= budget]
    least = lowest(within(trials, budget))
    assert bool(steps) == (least is not None)
    if not steps:
        return
    losses = [step[0].history[-1].eval_loss_nats for step in steps]
    assert losses[-1] <= least.history[-1].eval_loss_nats + margin
    assert all(cheaper > dearer + margin for cheaper, dearer in pairwise(losses))
    firsts = [step[0].cost.peak_memory_mib for step in steps]
    assert firsts == sorted(firsts)


def seeds_apart(by: float):
    config = TrialConfig(precision="16bit", rank=64, alpha=8)
    for seed in range(2):
        shown = measurement(200, 5.0 + seed * by)
        yield trial(90 + seed, config=replace(config, seed=seed), history=(shown,), origin="replicate")


def test_how_sure_the_best_is_names_what_cannot_be_told_apart_and_the_cheapest_of_it():
    def ranked(rank: int, loss: float):
        config = TrialConfig(precision="nf4", rank=rank, alpha=8)
        return trial(rank, config=config, cost=cost(peak_memory_mib=100.0 + rank), history=(measurement(200, loss),))

    found = [ranked(2, 2.1), ranked(4, 2.004), ranked(8, 2.002), ranked(16, 2.0)]
    assert how_sure(found[-1], found, loss_noise(found)).startswith(
        "how sure this is shows where a config has run under two seeds"
    )
    noise = loss_noise([*found, *seeds_apart(0.0013)])
    said = how_sure(found[-1], found, noise)
    assert said.startswith(
        "4 bits at rank 4 to 16 (3 trials) cannot be told apart by validation loss, within 0.0082 nats"
    )
    assert "trial 4, 4 bits, rank 4," in said
    assert said.endswith("is the cheapest of them (104.0 MiB)")
    marked = how_sure(found[-1], found, noise, {found[1].key})
    assert re.search(r"trial 4, 4 bits, rank 4,.*, lost, is the cheapest of them", marked)
    assert how_sure(found[0], found[:1], noise).startswith(
        "it is the only trial with so low a validation loss, within 0.0082 nats"
    )
    knee_alone = how_sure(found[0], found, noise)
    assert knee_alone.startswith("it is the only trial with about this validation loss, within 0.0082 nats")
    assert knee_alone.endswith("; the lowest, trial 16's, is 0.1000 nats lower")
    beside = how_sure(found[0], [ranked(1, 2.105), *found], noise)
    assert beside.startswith("4 bits at rank 1 to 2 (2 trials) cannot be told apart"), "none of the lower ones"
    assert beside.endswith("is the cheapest of them (101.0 MiB); the lowest, trial 16's, is 0.1000 nats lower")


def test_an_empty_front_has_no_knee():
    assert knee(front_of([], ASKED)) is None


@given(POINTS, st.integers(0, 10))
def test_the_best_within_a_budget_has_the_lowest_loss_of_all_that_fit_and_the_knee_is_of_their_front(points, budget):
    trials, fits = at(points), [(y, x) for x, y in points if x <= budget]
    if not fits:
        least = f"the least that a trial of 't' needs is {min(x for x, _ in points)}"
        with pytest.raises(ConfigError, match=f"^--max-memory is {budget}.0 MiB; {least}"):
            choose(snapshot(ASKED, trials, {}), max_memory_mib=float(budget))
        return
    chosen = choose(snapshot(ASKED, trials, {}), max_memory_mib=float(budget)).trial
    assert (chosen.history[-1].eval_loss_nats, chosen.cost.peak_memory_mib) == min(fits)
    at_knee = choose(snapshot(ASKED, trials, {}), max_memory_mib=float(budget), at_knee=True)
    assert at_knee.trial == knee(front_of(within(trials, budget), ASKED))


@given(POINTS, st.sampled_from([(), tuple(seeds_apart(1.0))]))
def test_answer_best_report_finalists_and_export_mean_the_same_trial_and_the_same_knee(points, seeds):
    trials = [*at(points), *seeds]
    margin = stats.t.ppf(0.95, 1) * 2**0.5 * 0.5**0.5 if seeds else 0.0  # of two runs a nat apart
    least = min(loss for _, loss in points)
    cheapest = min((mib, loss) for mib, loss in points if loss <= least + margin)
    for asked in (ASKED, make(objectives=("peak_memory_mib",))):  # the second's front need not hold the best
        found = report_of(snapshot(asked, trials, {}), lambda config: None)
        chosen, middle = (choose(snapshot(asked, trials, {}), at_knee=at_knee).trial for at_knee in (False, True))
        assert points[chosen.number] == cheapest
        assert f": trial {chosen.number} (" in answer_of(snapshot(asked, trials, {}))
        assert found.best_loss == chosen.number
        assert found.knee == middle.number
        assert found.finalist(chosen.number), "so that it is evaluated, and the report shows it"
        why = BEST if seeds else LOWEST  # of noise nothing is said that nobody knows
        assert export.chosen(export.Which(), snapshot(asked, trials, {})) == (chosen, why)
        assert export.chosen(export.Which(at_knee=True), snapshot(asked, trials, {})) == (middle, KNEE)


def test_a_trial_that_keeps_no_similarity_was_pruned_or_is_another_seed_is_never_the_best():
    nf4 = TrialConfig(precision="nf4", rank=4, alpha=8)
    low = {"history": (measurement(200, 0.1),)}
    others = [
        trial(1, config=nf4, similarity=similarity(0.5), **low),
        trial(2, config=nf4, **low),
        trial(3, state="pruned", reason="too high", **low),
        trial(4, origin="replicate", **low),
    ]
    asked = ASKED.model_copy(update={"min_similarity": 0.95})
    assert choose(snapshot(asked, [trial(0), *others], {})).trial.number == 0


@pytest.mark.parametrize(
    ("text", "mib"), [("2GiB", 2048), ("1.5 GiB", 1536), ("800mib", 800), ("1GB", 953.674), ("1048576B", 1)]
)
def test_a_size_is_read_with_its_unit(text, mib):
    assert mib_of(text) == pytest.approx(mib, rel=1e-5)


@pytest.mark.parametrize("text", ["", "2", "GiB", "-2GiB", "0GiB", "2 apples", "nanGiB", "1e999GiB"])
def test_a_size_that_says_nothing_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="is no size: say it with its unit, as 2GiB"):
        mib_of(text)


def test_best_names_the_lowest_validation_loss_and_the_knee_only_where_it_is_asked_for(tmp_path):
    root = tmp_path / "mlflow_runs"
    asked = make(GRID, name="a")
    stored.save(asked, sweep_folder("a", root))
    desk = Desk(sweep_folder("a", root), asked)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(costly)
    desk.ledger.close()
    found = called("best", "a", "--json", cwd=tmp_path).json
    assert (found["config"]["rank"], found["why"]) == (4, BEST)
    assert found["values"]["eval_loss_nats"] == pytest.approx(1.6)
    within_3 = called("best", "--max-memory", "3MiB", cwd=tmp_path)
    assert within_3.out.startswith(f"trial 1: {BEST}, of those that need at most 3.0 MiB")
    at_knee = called("best", "a", "--knee", "--json", cwd=tmp_path).json
    assert (at_knee["config"]["rank"], at_knee["why"]) == (2, KNEE)
    assert called("best", "a", "--max-memory", "2", cwd=tmp_path).code == 2


# --- nothing counts


def test_where_no_trial_keeps_the_similarity_the_nearest_is_named():
    nf4 = TrialConfig(precision="nf4", rank=4, alpha=8)
    found = [trial(n, config=nf4, similarity=similarity(c)) for n, c in enumerate((0.6, 0.8, 0.7))]
    said = nothing_counts(found, make(min_similarity=0.9), lambda config: None)
    assert "min_similarity 0.9" in said
    assert "trial 1 (4 bits, rank 4" in said
    assert "at least 0.8000" in said
    assert nothing_counts([*found, trial(3)], make(min_similarity=0.9), lambda config: None) is None


def test_where_nothing_fits_the_device_the_one_that_needs_least_is_named():
    sizes = (64, 8, 16)
    configs = [TrialConfig(precision="nf4", rank=rank, alpha=8) for rank in sizes]
    found = [trial(n, config=c, state="refused", history=(), reason=f"needs {c.rank}") for n, c in enumerate(configs)]
    said = nothing_counts(found, make(), lambda config: float(config.rank))
    assert said.startswith("No trial completed: 3 do not fit the device.")
    assert "trial 1 (4 bits, rank 8" in said


def test_a_sweep_whose_trials_all_broke_says_how_and_an_unfinished_one_says_nothing(tmp_path):
    desk = Desk(tmp_path, make(space(GRID)))
    assert nothing_counts(desk.ledger.trials(), desk.settings, lambda config: None) is None
    desk.finish(breaks)
    said = nothing_counts(desk.ledger.trials(), desk.settings, lambda config: None)
    assert said == "No trial has all the objectives (6 diverged). The last reason: diverged here."
