"""Which trials enter the front, with which values, and what front.json holds."""

import json
import math
from dataclasses import replace
from math import log, sqrt
from statistics import stdev
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.finalists import finalists
from orchestrator.analysis.front import dissimilarity, front_of, losses_of, objective_value
from orchestrator.objectives import DEFAULT, OBJECTIVES
from tests.support.sweeps import cost, make, measurement, similarity, trial
from trainables.values.config import State, TrialConfig

SETTINGS = make(min_similarity=0.9)
CONFIGS = {p: TrialConfig(precision=p, rank=4, alpha=8) for p in ("nf4", "16bit")}
COSINES = st.sampled_from([0.5, 0.89, 0.9, 0.95, 1.0])
FEW = st.integers(1, 3).map(float)


@st.composite
def trials(draw):
    """Trials of any state with few distinct values; some without similarity, or stopped before a measurement."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        history = [measurement(step, draw(FEW)) for step in (25, 200)]
        its_cost = cost(peak_memory_mib=draw(FEW), seconds_per_step=draw(FEW))
        precision = draw(st.sampled_from(["nf4", "16bit"]))
        close = draw(st.none() | st.builds(similarity, COSINES, COSINES)) if precision == "nf4" else None
        state = draw(st.sampled_from(["completed"] * 4 + list(get_args(State))))
        kept = tuple(history if state == "completed" else history[: draw(st.integers(0, 2))])
        config = replace(CONFIGS[precision], rank=number + 1)
        shown = {"config": config, "state": state, "history": kept, "similarity": close}
        found.append(trial(number, **shown, cost=its_cost if kept else None))
    return found


MAXIMISED = {"embedding_cosine", "token_match_rate"}
NAMES = st.lists(st.sampled_from([*OBJECTIVES]), min_size=1, max_size=4, unique=True).map(tuple)


def value_by_hand(t, objective):
    if objective in ("embedding_cosine", "token_match_rate"):
        return 1.0 if t.config.precision == "16bit" else getattr(t.similarity.quantized, objective).value
    return t.history[-1].eval_loss_nats if objective == "eval_loss_nats" else getattr(t.cost, objective)


def counts(t, min_similarity) -> bool:
    similar = t.config.precision == "16bit" or (
        t.similarity and t.similarity.quantized.embedding_cosine.low >= min_similarity
    )
    return t.state == "completed" and bool(t.history) and bool(similar)


def beats(a, b, objectives) -> bool:
    """a dominates b, larger being better for the similarities."""
    pairs = [(value_by_hand(a, o), value_by_hand(b, o), o in MAXIMISED) for o in objectives]
    return all(x >= y if more else x <= y for x, y, more in pairs) and any(x != y for x, y, _ in pairs)


@given(trials(), NAMES)
def test_the_front_is_made_of_the_undominated_among_the_trials_that_count(found, objectives):
    counted = [t for t in found if counts(t, 0.9)]
    expected = {t.key for t in counted if not any(beats(other, t, objectives) for other in counted)}
    assert front_of(found, make(min_similarity=0.9, objectives=objectives)).keys == expected


@given(trials(), NAMES)
def test_front_json_holds_each_members_values_in_their_own_unit_and_sense(found, objectives):
    front = front_of(found, make(min_similarity=0.9, objectives=objectives))
    written = json.loads(json.dumps(front.to_dict(), allow_nan=False))
    assert list(written) == ["objectives", "noise", "reference_point", "hypervolume", "members", "nearly"]
    assert written["objectives"] == list(objectives)
    by_key = {t.key: t for t in found}
    for member in written["members"]:
        assert list(member) == ["key", "config", "values", "front_share", "tied_with"]
        assert member["values"] == [value_by_hand(by_key[member["key"]], o) for o in objectives]
        assert TrialConfig.from_dict(member["config"]) == by_key[member["key"]].config


@given(trials(), NAMES)
def test_every_counted_trial_lies_within_the_reference_point(found, objectives):
    front = front_of(found, make(min_similarity=0.9, objectives=objectives))
    if not front.members:
        assert front.reference_point is None
        assert front.hypervolume == 0
        return
    assert front.hypervolume > 0
    for t in (t for t in found if counts(t, 0.9)):
        for objective, corner in zip(objectives, front.reference_point, strict=True):
            value = value_by_hand(t, objective)
            assert value > corner if objective in MAXIMISED else value < corner


@given(trials(), NAMES)
def test_members_come_best_first_by_the_first_objective(found, objectives):
    front = front_of(found, make(min_similarity=0.9, objectives=objectives))
    firsts = [value_by_hand(member, objectives[0]) for member in front.members]
    assert firsts == sorted(firsts, reverse=objectives[0] in MAXIMISED)


@pytest.mark.parametrize("state", sorted(set(get_args(State)) - {"completed"}))
def test_a_trial_that_did_not_complete_never_counts_however_good(state):
    good = trial(0, state=state, history=(measurement(200, 0.1),))
    worse = trial(1)
    assert front_of([good, worse], SETTINGS).keys == {worse.key}
    assert front_of([good], SETTINGS).members == ()


def test_a_4_bit_trial_without_similarity_never_counts():
    lone = trial(0, config=CONFIGS["nf4"], history=(measurement(200, 0.1),))
    assert front_of([lone, trial(1)], make(min_similarity=0)).keys == {trial(1).key}


def test_a_4_bit_trial_counts_from_the_similarity_asked_for_upwards():
    at = {c: trial(n, config=CONFIGS["nf4"], similarity=similarity(c)) for n, c in enumerate((0.89, 0.9, 0.91))}
    assert front_of(list(at.values()), SETTINGS).keys == {at[0.9].key, at[0.91].key}


def test_a_16_bit_trial_is_its_own_baseline():
    own = trial(0)
    assert [objective_value(own, o) for o in sorted(MAXIMISED)] == [1.0, 1.0]
    assert dissimilarity(own, 0.9) == pytest.approx(-0.1)


def test_a_maximised_objective_changes_sign_exactly_once():
    nf4 = trial(0, config=CONFIGS["nf4"], similarity=similarity(0.97, match=0.25))
    assert losses_of(nf4, ("embedding_cosine", "token_match_rate", "eval_loss_nats")) == (-0.97, -0.25, 2.0)
    front = front_of([nf4], make(objectives=("embedding_cosine",)))
    assert front.to_dict()["members"][0]["values"] == [0.97]
    assert front.reference_point == (pytest.approx(0.97 - 0.1 * 0.97),)
    assert front.hypervolume == pytest.approx(0.1 * 0.97)


def test_a_trial_with_a_value_that_is_absent_or_not_finite_has_no_losses():
    assert losses_of(trial(0, history=()), DEFAULT) is None
    assert losses_of(trial(0, history=(measurement(200, math.nan),)), DEFAULT) is None
    assert losses_of(trial(0, config=CONFIGS["nf4"]), ("embedding_cosine",)) is None


def test_the_last_measurement_is_the_one_that_counts():
    early = trial(0, history=(measurement(100, 1.0), measurement(200, 3.0)))
    assert objective_value(early, "eval_loss_nats") == 3.0


def test_equal_trials_both_stay_and_a_worse_one_does_not_move_the_front():
    twice = [trial(0), replace(trial(0), key="b" * 64, number=1)]
    assert len(front_of(twice, SETTINGS).members) == 2
    worse = trial(2, config=replace(trial(0).config, rank=8), history=(measurement(200, 9.0),))
    assert front_of([*twice, worse], SETTINGS).keys == front_of(twice, SETTINGS).keys


# --- noise


def replicates(*losses: float, first: int = 100, **values) -> list:
    """Runs of one config under as many seeds, which enter no front."""
    config = TrialConfig(precision="16bit", rank=64, alpha=8)
    runs = []
    for seed, loss in enumerate(losses):
        shown = {"config": replace(config, seed=seed), "history": (measurement(200, loss),), "origin": "replicate"}
        runs.append(trial(first + seed, **shown, **values))
    return runs


def ranked(number: int, mib: float, loss: float, **values):
    config = TrialConfig(precision="16bit", rank=number + 1, alpha=8)
    its_cost = cost(peak_memory_mib=mib, **values)
    return trial(number, config=config, cost=its_cost, history=(measurement(200, loss),))


TWO = make(objectives=("peak_memory_mib", "eval_loss_nats"))
SD = 0.011 / (2**0.5 * stats.t.ppf(0.95, 1))


def test_six_ranks_a_little_apart_become_the_cheapest_of_them_once_seed_replicates_tell_the_noise():
    six = [ranked(i, 900.0 + i, 2.0 - 0.0006 * i) for i in range(6)]
    assert front_of(six, TWO).keys == {t.key for t in six}
    front = front_of([*six, *replicates(3.0, 3.0 + sqrt(2) * SD)], TWO)
    assert front.noise[1].margin == pytest.approx(0.011)
    assert front.keys == {six[0].key}
    assert {t.number for t in front.nearly} == {n for n in range(1, 6) if front.shares[six[n].key] >= 0.25} != set()
    assert front.shares[six[0].key] == 1.0
    assert front_of([*six, *replicates(3.0)], TWO).noise[1].sd is None


def test_without_noise_finalists_and_front_are_those_of_plain_dominance():
    six = [ranked(i, 900.0 + i, 2.0 - 0.0006 * i) for i in range(6)]
    runs = [*six, *replicates(3.0, 3.1)]
    assert front_of(runs, TWO, repeats=None).keys == {t.key for t in six}
    assert [t.number for t in finalists(runs, TWO)] == list(range(6))


def test_members_within_the_noise_of_each_other_are_tied_and_the_file_says_so():
    alike, other = [ranked(i, 900.0, 2.0 - 0.003 * i) for i in range(3)], ranked(3, 950.0, 1.9)
    front = front_of([*alike, other, *replicates(3.0, 3.01)], TWO)
    assert front.keys == {t.key for t in (*alike, other)}
    ties = {key: {t.number for t in tied} for key, tied in front.tied.items()}
    assert ties == {alike[0].key: {1, 2}, alike[1].key: {0, 2}, alike[2].key: {0, 1}, other.key: set()}
    members = {member["key"]: member for member in front.to_dict()["members"]}
    assert members[alike[0].key]["tied_with"] == [alike[1].key, alike[2].key]
    shares = [members[trial.key]["front_share"] for trial in (*alike, other)]
    assert 0 < shares[0] < shares[2] < shares[3] < 1, "one degree of freedom leaves a spread open that would turn it"


REPEATS = [{"cost_key": "a", "device": "CPU", "seconds_per_step": seconds} for seconds in (1.0, 1.1, 1.2)]
TIMED = make(objectives=("eval_loss_nats", "seconds_per_step"))


@pytest.mark.parametrize(("slower_by", "stays"), [(0.01, True), (0.4, True), (0.5, False)])
def test_times_are_told_apart_by_their_ratio_as_far_as_repeats_of_one_cost_key_lie_apart(slower_by, stays):
    fast = ranked(0, 900.0, 2.0, seconds_per_step=0.01)
    slow = ranked(1, 900.0, 2.0, seconds_per_step=0.01 * (1 + slower_by))
    front = front_of([fast, slow], TIMED, repeats=REPEATS)
    assert front.noise[1].margin == pytest.approx(2**0.5 * stats.t.ppf(0.95, 2) * stdev(map(log, (1.0, 1.1, 1.2))))
    assert front.keys == ({fast.key, slow.key} if stays else {fast.key})
    assert front_of([fast, slow], TIMED, repeats=REPEATS[:2]).keys == {fast.key}, "fewer tell nothing"


def test_the_times_of_another_kind_of_device_tell_nothing():
    fast, slow = (ranked(i, 900.0, 2.0, seconds_per_step=s, device="T4") for i, s in enumerate((0.01, 0.011)))
    assert front_of([fast, slow], TIMED, repeats=REPEATS).keys == {fast.key}
    there = [repeat | {"device": "T4"} for repeat in REPEATS]
    assert front_of([fast, slow], TIMED, repeats=there).keys == {fast.key, slow.key}
