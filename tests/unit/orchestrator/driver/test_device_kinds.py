"""Trials on several kinds of device: each has its own memory and time, and speeds are compared within one kind only."""

import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.analysis.choice import knee
from orchestrator.analysis.costs import cost_table, savings
from orchestrator.analysis.front import front_of
from orchestrator.cli.front_table import front_table
from orchestrator.ledger import Ledger
from tests.support.sweeps import Desk, completes, cost, make, measurement, space, trial
from trainables.values.config import TrialConfig

A100, T4 = "NVIDIA A100", "Tesla T4"
CONFIG = TrialConfig(precision="16bit", rank=4, alpha=8)
SMALL = st.integers(1, 3)


def on(device: str, number: int, *, mib: float, seconds: float, loss: float, **values):
    """A completed trial measured on a kind of device."""
    shown = measurement(200, loss)
    times = dict.fromkeys(("seconds_per_step", "seconds_per_step_p10", "seconds_per_step_p90"), seconds)
    its_cost = cost(device=device, peak_memory_mib=mib, **times)
    config = replace(CONFIG, learning_rate=1e-4 * (number + 1))
    return trial(number, **{"config": config, "cost": its_cost, "history": (shown,), **values})


def numbers(front) -> set[int]:
    return {member.number for member in front.members}


def test_a_trial_on_a_faster_device_does_not_beat_one_on_another():
    trials = [on(A100, 0, mib=100, seconds=0.01, loss=1.0), on(T4, 1, mib=100, seconds=0.1, loss=1.0)]
    assert numbers(front_of(trials, make())) == {0, 1}
    same = [trials[0], on(A100, 1, mib=100, seconds=0.1, loss=1.0)]
    assert numbers(front_of(same, make())) == {0}


def test_where_time_is_no_objective_kinds_of_device_do_not_matter():
    asked = make(objectives=("peak_memory_mib", "eval_loss_nats"))
    trials = [on(A100, 0, mib=100, seconds=0.01, loss=1.0), on(T4, 1, mib=101, seconds=0.1, loss=1.1)]
    assert numbers(front_of(trials, asked)) == {0}


@given(st.lists(st.tuples(st.sampled_from([A100, T4]), SMALL, SMALL, SMALL), max_size=12))
def test_the_front_is_the_front_of_each_kind_and_its_hypervolume_their_sum(rows):
    trials = [on(d, i, mib=100.0 * m, seconds=0.1 * s, loss=1.0 * n) for i, (d, m, s, n) in enumerate(rows)]
    reference = (1000.0, 1.0, 10.0)
    whole = front_of(trials, make(), reference)
    kinds = [front_of([t for t in trials if t.cost.device == d], make(), reference) for d in (A100, T4)]
    assert numbers(whole) == set().union(*map(numbers, kinds))
    assert whole.hypervolume == sum(front.hypervolume for front in kinds)


def test_a_cost_key_is_measured_once_for_each_kind_and_a_trial_has_that_of_its_own(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    keys = []
    for i, device in enumerate((A100, T4, A100)):
        config = replace(CONFIG, learning_rate=1e-4 * (i + 1))
        keys.append(f"{i:064x}")
        ledger.add(keys[-1], config, params={}, origin="search")
        ledger.start(keys[-1])
        ledger.keep_cost(config.cost_key, cost(device=device, peak_memory_mib=100.0 + i), of=keys[-1])
        ledger.record(keys[-1], measurement(1, 2.0))
    found = [entry.result for entry in ledger.entries()]
    assert [t.cost.device for t in found] == [A100, T4, A100]
    assert [t.cost.peak_memory_mib for t in found] == [100.0, 101.0, 100.0], "the third has the first's"
    assert {c.device for c in ledger.costs(CONFIG.cost_key)} == {A100, T4}
    assert ledger.cost(CONFIG.cost_key).device == A100
    assert ledger.costs(replace(CONFIG, rank=8).cost_key) == ()
    ledger.close()


def test_a_worker_is_handed_what_every_kind_measured_and_trials_keep_their_device(tmp_path):
    """Two workers on two kinds: the cell is measured twice, and each trial's record says on which kind it ran."""
    parameters = {"learning_rate": {"values": [1e-3, 1e-4, 1e-5]}}
    desk = Desk(tmp_path, make(space(parameters=parameters, fixed={"rank": 1, "alpha": 1, "precision": "16bit"})))

    def working_on(device):
        return lambda task: completes(task, costs=cost(device=device))

    first = desk.do(working_on(A100))
    second = desk.do(working_on(T4))
    third = desk.do(working_on(T4))
    assert [len(task.costs) for task in (first, second, third)] == [0, 1, 2]
    assert [t.cost.device for t in desk.candidates] == [A100, T4, T4]


def test_trials_are_pruned_among_their_own_kind_only(tmp_path):
    """Slower and worse than all on the other kind, but alone on its own: it goes on."""
    rates = {"learning_rate": {"values": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]}}
    fixed = {"rank": 1, "alpha": 1, "precision": "16bit", "max_steps": 8}
    asked = make(space(parameters=rates, fixed=fixed, early_terminate={"type": "hypervolume"}), asynchronous=True)

    def working_on(device, loss, seconds):
        return lambda task: completes(task, loss=loss, costs=cost(device=device, seconds_per_step=seconds))

    desk = Desk(tmp_path, asked)
    for i in range(4):
        desk.do(working_on(A100, 1.0 + i / 10, 0.01))
    on_t4 = desk.do(working_on(T4, 3.0, 1.0))
    beaten = desk.do(working_on(A100, 3.0, 1.0))
    states = {t.key: t.state for t in desk.candidates}
    assert states[on_t4.key] == "completed"
    assert states[beaten.key] == "pruned"


def test_savings_and_the_cost_table_never_mix_kinds():
    pair = [replace(CONFIG, precision="nf4"), CONFIG]
    trials = [
        trial(0, config=pair[0], cost=cost(device=A100, peak_memory_mib=60.0, seconds_per_step=1.0)),
        trial(1, config=pair[1], cost=cost(device=T4, peak_memory_mib=100.0, seconds_per_step=9.0)),
    ]
    assert savings(trials) == ()
    trials.append(trial(2, config=pair[1], cost=cost(device=A100, peak_memory_mib=80.0, seconds_per_step=0.5)))
    assert {(saving.saved_mib, saving.time_ratio) for saving in savings(trials)} == {(20.0, 2.0)}
    shown = {cell.cost.device for cell in cost_table(trials, None, lambda _: None).cells if cell.cost}
    assert shown == {A100}


def test_the_knee_is_held_against_its_own_kind():
    """Beside the A100's, all times on the T4 are alike, and trial 2 would be it."""
    rows = [(A100, 100, 0.02, 3.0), (A100, 300, 0.01, 1.0), (A100, 200, 0.015, 2.0)]
    rows += [(T4, 100, 18.0, 3.0), (T4, 300, 20.0, 1.0), (T4, 120, 18.2, 1.2)]
    front = front_of([on(d, i, mib=m, seconds=s, loss=n) for i, (d, m, s, n) in enumerate(rows)], make())
    assert numbers(front) == set(range(6))
    assert knee(front).number == 5


def test_the_printed_front_names_the_devices_where_there_are_several():
    def shown(trials) -> str:
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(front_table(front_of(trials, make()), console.width))
        return console.export_text()

    mixed = [on(A100, 0, mib=100, seconds=0.01, loss=1.0), on(T4, 1, mib=100, seconds=0.1, loss=1.0)]
    assert A100 in shown(mixed)
    assert T4 in shown(mixed)
    assert "device" not in shown(mixed[:1])
