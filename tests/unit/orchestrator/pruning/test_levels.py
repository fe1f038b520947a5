"""Depths kept while rows come one by one, and the rungs that rest on them, against their slow definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.pareto import pareto_mask
from orchestrator.objectives import DEFAULT
from orchestrator.pruning.halving import depths, goes_on, is_undominated, ranking, stratum
from orchestrator.pruning.levels import Levels
from orchestrator.pruning.moasha import Moasha
from search_spaces import EarlyTerminate
from trainables.values.results import Measurement

RULE = EarlyTerminate(type="moasha", eta=2, stratum_share=0.5)
NOISES = st.sampled_from([0.0, 0.5, 1.0, 1.5])


def rows_of(n_objectives: int, max_size: int = 14) -> st.SearchStrategy:
    """Few distinct values, so that ties, equal rows and long chains are common."""
    return st.lists(st.tuples(*[st.integers(0, 5)] * n_objectives), min_size=1, max_size=max_size)


ROWS = st.integers(1, 3).flatmap(rows_of)


def noise_in(objective: int, noise: float, rows: list) -> list[float]:
    epsilon = [0.0] * len(rows[0])
    epsilon[objective % len(epsilon)] = noise
    return epsilon


@given(ROWS, st.integers(0, 2), NOISES)
def test_rows_that_come_one_by_one_have_the_depths_of_all_at_once(rows, objective, noise):
    epsilon = noise_in(objective, noise, rows)
    levels = Levels(rows[:1], epsilon)
    for n, row in enumerate(rows[1:], start=2):
        levels.add(row)
        assert levels.depths.tolist() == depths(rows[:n], epsilon).tolist()


def test_with_noise_a_row_pushes_down_what_is_less_deep_than_itself():
    """The second dominates the third and the third the first, but the second not the first: it is not transitive."""
    levels = Levels([[0.0, 2.0], [2.0, 0.0]], [1.0, 0.0])
    levels.add([1.0, 1.0])
    assert levels.depths.tolist() == [3, 1, 2]


@given(ROWS, st.integers(0, 2), NOISES)
def test_the_latest_is_among_the_first_where_the_ranking_has_it(rows, objective, noise):
    epsilon = noise_in(objective, noise, rows)
    levels = Levels(rows[:1], epsilon)
    for row in rows[1:]:
        levels.add(row)
    order = ranking(rows, epsilon).tolist()
    for n in range(len(rows) + 1):
        assert levels.is_latest_among_first(n) == (len(rows) - 1 in order[:n])


@given(ROWS, st.integers(0, 2), NOISES, NOISES)
def test_depths_are_kept_under_another_noise_only_where_they_are_the_same(rows, objective, noise, other):
    levels = Levels(rows, noise_in(objective, noise, rows))
    after = noise_in(objective, other, rows)
    if levels.takes(after):
        assert levels.depths.tolist() == depths(rows, after).tolist()
        assert levels.epsilon.tolist() == after


def test_depths_are_kept_where_no_two_rows_differ_by_what_lies_between_the_noises():
    levels = Levels([[0.0, 5.0], [2.0, 3.0], [4.0, 4.0]], [0.5, 0.0])
    assert levels.takes([1.9, 0.0])
    assert not levels.takes([2.0, 0.0])
    assert levels.epsilon.tolist() == [1.9, 0.0]


def test_noise_in_two_objectives_is_refused():
    with pytest.raises(ValueError, match="in one objective"):
        Levels([[0.0, 0.0]], [1.0, 1.0])


@given(ROWS, st.integers(0, 2), NOISES)
def test_a_row_is_undominated_where_the_mask_has_it(rows, objective, noise):
    epsilon = noise_in(objective, noise, rows)
    assert [is_undominated(rows, i, epsilon) for i in range(len(rows))] == pareto_mask(rows, epsilon).tolist()


# --- rungs


class SlowRung:
    """MOASHA's rung as defined: one list of trials in the order in which they came, looked through for each."""

    def __init__(self) -> None:
        self.marks: dict[str, tuple] = {}
        self.stopped: set[str] = set()

    def enter(self, key: str, losses: tuple, noise: float, device: str) -> None:
        self.stopped.discard(key)
        self.marks.pop(key, None)
        self.marks[key] = (losses, stratum(losses[0], RULE.stratum_share), noise, device)

    def latest_stops(self) -> bool:
        latest = next(reversed(self.marks))
        mine = {key: mark for key, mark in self.marks.items() if mark[3] == self.marks[latest][3]}
        goes = goes_on(
            np.array([losses for losses, *_ in mine.values()]),
            np.array([band for _, band, *_ in mine.values()]),
            len(mine) - 1,
            eta=RULE.eta,
            epsilon=[0.0, float(np.median([noise for _, _, noise, _ in mine.values()])), 0.0],
            alive=np.array([key not in self.stopped for key in mine]),
        )
        if not goes:
            self.stopped.add(latest)
        return not goes


@pytest.mark.parametrize("seed", range(6))
def test_a_rung_stops_exactly_whom_its_definition_stops(seed):
    """Trials that come again, that are not asked about, of two kinds of device, under a noise that moves."""
    draw = np.random.default_rng(seed)
    fast, slow = Moasha(RULE, 8, DEFAULT), SlowRung()
    for n in range(150):
        number = n if draw.random() < 0.8 else int(draw.integers(0, n + 1))
        mib, loss = 10 + 3 * float(draw.random()), round(float(draw.random()), 2)
        seconds, noise = float(draw.integers(0, 20)), float(draw.choice([1.0, 1.0, 3.0, 8.0]))
        device = "a" if draw.random() < 0.9 else "b"
        cost = {"peak_memory_mib": mib, "reserved_memory_mib": mib, "seconds_per_step": seconds}
        losses = {"train_loss_nats": loss, "eval_loss_nats": loss}
        fast.enter(str(number), Measurement(step=1, **losses, **cost, tokens_per_second=1.0), noise, device)
        slow.enter(str(number), (mib, seconds, loss), noise, device)
        if draw.random() < 0.8:
            assert (fast.why_stop(1) is not None) == slow.latest_stops(), n


def test_the_least_value_of_a_trial_that_was_stopped_here_counts_for_no_other():
    """The one that held it comes again with more; of the two that have it now, one was stopped."""
    moasha = Moasha(RULE, 8, DEFAULT)
    answers = []
    for key, mib, other in (("a", 10.0, 5.0), ("b", 10.0, 9.0), ("a", 10.1, 5.0), ("c", 10.0, 10.0)):
        cost = {"peak_memory_mib": mib, "reserved_memory_mib": mib, "seconds_per_step": other, "tokens_per_second": 1.0}
        moasha.enter(key, Measurement(step=1, train_loss_nats=other, eval_loss_nats=other, **cost), 0.0)
        answers.append(moasha.why_stop(1) is not None)
    assert answers == [False, True, False, False]
