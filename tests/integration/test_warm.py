"""Which worker a task goes to, and what it is asked for with."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.utils.object_cache import _ObjectCache

from orchestrator.cluster import ray_cluster
from orchestrator.driver import sweep
from orchestrator.workers import warm
from tests.support.clusters import Late, add_node, joined_cluster
from tests.support.sweeps import make, space

ONE_GPU = {"cpu": 1, "gpu": 1, "accelerator_type:A100": 0.001}


def test_a_worker_is_asked_for_with_its_resources_by_rays_names():
    wanted = warm.resources_of({"worker": warm.Workers(ONE_GPU).take("t")})
    assert wanted.bundles == [{"CPU": 1, "GPU": 1, "accelerator_type:A100": 0.001}]


def test_only_requests_for_the_same_worker_are_equal():
    workers = warm.Workers(ONE_GPU)
    first, other = (warm.resources_of({"worker": workers.take(name)}) for name in "ab")
    workers.give_back("a", lost=False)
    again = warm.resources_of({"worker": workers.take("c")})
    assert (again == first, hash(again) == hash(first)) == (True, True)
    assert first != other
    assert len({first, other, again}) == 2


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), max_size=60))
def test_no_worker_has_two_tasks_and_none_that_was_lost_gets_another(events):
    workers, busy, lost, n_most = warm.Workers(ONE_GPU), {}, set(), 0
    for n, (takes, is_lost, which) in enumerate(events):
        if takes or not busy:
            number = workers.take(str(n))["number"]
            assert number not in {*busy.values(), *lost}
            busy[str(n)] = number
            n_most = max(n_most, len(busy))
            continue
        name = list(busy)[which % len(busy)]
        workers.give_back(name, lost=is_lost)
        number = busy.pop(name)
        lost |= {number} if is_lost else set()
    assert workers.take("last")["number"] <= n_most + len(lost)  # none is begun while another is idle


def test_a_worker_that_began_is_asked_for_in_the_same_words_when_more_nodes_are_avoided():
    avoided: list[str] = []
    workers = warm.Workers(ONE_GPU, avoided)
    before = warm.resources_of({"worker": workers.take("a")})
    avoided.append("n1")
    workers.give_back("a", lost=False)
    assert warm.resources_of({"worker": workers.take("b")}) == before
    assert workers.take("c")["avoided"] == ["n1"]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def tune():
    """Three workers at work, whose numbers Tune's own cache was told: workers, cache, what they are asked for with."""
    clock, cache = Clock(), _ObjectCache()
    workers = warm.Workers(ONE_GPU, clock=clock)
    controller = SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache, _actor_manager=None))
    wanted = [warm.resources_of({"worker": workers.take(name)}) for name in "abc"]
    for one in [*wanted, *wanted]:  # told again for each later trial
        workers.keep(controller, SimpleNamespace(placement_group_factory=one))
    return SimpleNamespace(workers=workers, cache=cache, wanted=wanted, clock=clock)


def test_tune_keeps_one_worker_of_each_number_however_many_end_at_once(tune):
    kept = Counter(tune.cache.cache_object(one, object()) for one in [*tune.wanted, tune.wanted[0]])
    assert kept == {True: 3, False: 1}
    assert not list(tune.cache.flush_cached_objects())


def test_an_idle_worker_is_given_up_for_a_task_whose_own_finds_no_place(tune):
    for name in "ab":
        tune.workers.began(name)
    actors = {one: object() for one in tune.wanted}
    for name, one in zip("ab", tune.wanted, strict=False):
        tune.cache.cache_object(one, actors[one])
        tune.workers.give_back(name, lost=False)
    tune.workers.make_room()
    assert not list(tune.cache.flush_cached_objects()), "it has not waited for as long as a start takes"
    tune.clock.seconds = warm.START_SECONDS + 1
    tune.workers.make_room()
    assert list(tune.cache.flush_cached_objects()) == [actors[tune.wanted[0]]]
    assert [tune.workers.take(name)["number"] for name in "de"] == [1, 3]


def test_no_idle_worker_is_given_up_where_every_task_has_begun(tune):
    for name in "abc":
        tune.workers.began(name)
    tune.workers.give_back("a", lost=False)
    tune.clock.seconds = warm.START_SECONDS + 1
    tune.workers.make_room()
    assert tune.workers.take("d")["number"] == 0


def test_a_worker_that_is_idle_for_long_is_given_up_and_the_others_stay(tune):
    for n, name in enumerate("abc"):
        tune.workers.began(name)
        tune.clock.seconds = 20.0 * n
        tune.workers.give_back(name, lost=False)
    tune.clock.seconds = warm.IDLE_SECONDS + 1
    tune.workers.make_room()
    assert [tune.workers.take(name)["number"] for name in "def"] == [2, 1, 3]


def test_a_lost_worker_is_told_of_and_its_number_not_used_again():
    told = []
    workers = warm.Workers(ONE_GPU, lost=lambda: told.append(True))
    workers.take("a")
    workers.give_back("a", lost=True)
    assert told == [True]
    assert workers.take("b")["number"] == 1


# --- under Ray Tune


@pytest.fixture(scope="module")
def joined():
    """A cluster that the driver has joined: a head that runs no trials, and a node of 2 CPUs."""
    with joined_cluster(2) as found:
        yield found


def test_every_slot_gets_a_worker_that_stays_although_trials_are_shorter_than_its_start(joined, tmp_path):
    rates = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}}
    searched = space(method="random", parameters=rates, fixed={"rank": 2, "alpha": 8, "precision": "16bit"})
    asked = make(searched, address=joined.address, insecure=True, n_trials=16, reuse=False)
    result = sweep.run(asked, tmp_path / "mlflow_runs", resume=False, started=lambda *_: None, trainable=Late)
    assert [trial.state for trial in result.trials] == ["completed"] * 16, [trial.reason for trial in result.trials]
    trained = Counter(trial.environment["worker"] for trial in result.trials)
    assert len(trained) == 2, trained
    assert min(trained.values()) >= 4, trained


def test_a_node_that_went_without_a_word_is_counted_no_more_as_soon_as_a_worker_is_lost_there(joined):
    asked, gone = make(), add_node(joined, num_cpus=3)
    slots = ray_cluster.Slots(lambda silent: ray_cluster.n_slots(asked, silent))
    assert (slots(), ray_cluster.silent_nodes()) == (5, set())
    joined.remove_node(gone, allow_graceful=False)
    slots.one_lost()
    assert slots() == 2
