"""Which one config: the knee, the best within a memory budget, and the nearest where none counts."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import settings as settings_file
from orchestrator.analysis.front import front_of
from orchestrator.analysis.knee import best_within, choose, knee, mib_of, stairs
from orchestrator.search.infeasible import nothing_counts
from orchestrator.settings import sweep_folder
from tests.sweeps import GRID, WORKLOAD, Desk, breaks, command, completes, make, measurement, similarity, space, trial
from trainables.config import TrialConfig
from trainables.errors import ConfigError

OBJECTIVES = ("peak_memory_mib", "eval_loss_nats")
ASKED = make(objectives=OBJECTIVES)
POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


def at(points, factor: float = 1.0):
    return [
        trial(n, history=(measurement(200, float(y), peak_memory_mib=x * factor),)) for n, (x, y) in enumerate(points)
    ]


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
    steps = [trial for trial in stairs(trials) if trial.history[-1].peak_memory_mib <= budget]
    assert (steps[-1] if steps else None) == best_within(trials, float(budget))


def test_an_empty_front_has_no_knee():
    assert knee(front_of([], ASKED)) is None


@given(POINTS, st.integers(0, 10))
def test_the_best_within_a_budget_has_the_lowest_loss_of_all_that_fit(points, budget):
    found = best_within(at(points), float(budget))
    fits = [(y, x) for x, y in points if x <= budget]
    assert (found is None) == (not fits)
    if found:
        assert (found.history[-1].eval_loss_nats, found.history[-1].peak_memory_mib) == min(fits)


@pytest.mark.parametrize(
    ("text", "mib"), [("2GiB", 2048), ("1.5 GiB", 1536), ("800mib", 800), ("1GB", 953.674), ("1048576B", 1)]
)
def test_a_size_is_read_with_its_unit(text, mib):
    assert mib_of(text) == pytest.approx(mib, rel=1e-5)


@pytest.mark.parametrize("text", ["", "2", "GiB", "-2GiB", "0GiB", "2 apples", "nanGiB", "1e999GiB"])
def test_a_size_that_says_nothing_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="max_memory must be a size such as 2GiB"):
        mib_of(text)


def test_best_names_a_config_from_the_ledger_and_says_what_the_least_is_where_none_fits(tmp_path):
    root = tmp_path / "mlflow_runs"
    asked = make(GRID, name="a")
    settings_file.save(asked, sweep_folder("a", root))
    desk = Desk(sweep_folder("a", root), asked)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(lambda task: completes(task, loss=2.0 - task.config.rank / 10))
    desk.ledger.close()
    assert choose("a", 2.0, root).trial.config.rank == 4
    with pytest.raises(ConfigError, match=r"max_memory is 0.5 MiB; the least that a trial of 'a' needs is 1.0 MiB"):
        choose("a", 0.5, root)
    found = command("best", "a", "--max-memory", "2MiB", "--json", cwd=tmp_path).json
    assert found["config"]["rank"] == 4
    assert found["values"]["eval_loss_nats"] == pytest.approx(1.6)
    assert command("best", cwd=tmp_path).out.startswith("trial ")
    assert command("best", "a", "--max-memory", "2", cwd=tmp_path).code == 2
    assert "knee" in json.dumps(command("best", "a", "--json", cwd=tmp_path).json)


# --- nothing counts


def test_where_no_trial_keeps_the_similarity_the_nearest_is_named():
    nf4 = TrialConfig(precision="nf4", rank=4, alpha=8)
    found = [trial(n, config=nf4, similarity=similarity(c)) for n, c in enumerate((0.6, 0.8, 0.7))]
    said = nothing_counts(found, make(min_similarity=0.9), lambda config: None)
    assert "min_similarity 0.9" in said
    assert "trial 1 (nf4, rank 4" in said
    assert "at least 0.8000" in said
    assert nothing_counts([*found, trial(3)], make(min_similarity=0.9), lambda config: None) is None


def test_where_nothing_fits_the_device_the_one_that_needs_least_is_named():
    sizes = (64, 8, 16)
    configs = [TrialConfig(precision="nf4", rank=rank, alpha=8) for rank in sizes]
    found = [trial(n, config=c, state="refused", history=(), reason=f"needs {c.rank}") for n, c in enumerate(configs)]
    said = nothing_counts(found, make(), lambda config: float(config.rank))
    assert said.startswith("No trial completed: 3 do not fit the device.")
    assert "trial 1 (nf4, rank 8" in said


def test_a_sweep_whose_trials_all_broke_says_how_and_an_unfinished_one_says_nothing(tmp_path):
    desk = Desk(tmp_path, make(space(GRID)))
    assert nothing_counts(desk.ledger.trials(), desk.settings, lambda config: None) is None
    desk.finish(breaks)
    said = nothing_counts(desk.ledger.trials(), desk.settings, lambda config: None)
    assert said == "No trial has all the objectives (6 diverged). The last reason: diverged here."
