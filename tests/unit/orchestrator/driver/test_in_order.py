"""The same command, the same answer: whatever order trials end in, and however often the driver dies."""

from collections import Counter
from dataclasses import replace
from functools import cache
from math import exp, log
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.budgets import ENDED
from orchestrator.analysis.choice import best, counting
from orchestrator.analysis.front import REFERENCE, front_of
from orchestrator.driver.in_order import LAG
from orchestrator.ledger import Ledger
from tests.support.sweeps import (
    GRID,
    TPE,
    Desk,
    breaks,
    completes,
    cost,
    make,
    measurement,
    space,
    without_similarity,
)

N_TRIALS = 12
N_SLOTS = 2
STOP = {"early_terminate": {"type": "hypervolume", "min_gain": 0.02}}
WIDE = TPE["parameters"] | {"rank": {"values": [1, 2, 4, 8, 16, 32]}}
PAIRS = {"rank": {"values": list(range(1, 9))}, "precision": {"values": ["16bit", "nf4"]}}


def sweep(base, n_trials=N_TRIALS, **values):
    """Settings whose finalists cost no time."""
    return make(space(base), n_trials=n_trials, verdict_seeds=1, **values)


WHOLE = TPE | STOP | {"parameters": PAIRS}
ENDLESS = TPE | STOP | {"parameters": WIDE}
SWEEPS = {
    "tpe": sweep(ENDLESS),
    "tpe, asha": sweep(ENDLESS | {"early_terminate": {"type": "asha"}}),
    "tpe, a space that is tried whole": sweep(WHOLE, 16, seed=1),
    "nsga2": sweep(ENDLESS | {"method": "nsga2"}, 20),
    "qmc": sweep(ENDLESS | {"method": "qmc"}),
    "random until flat": sweep(TPE | {"method": "random"}, 60, stop_when_flat=True),
    "grid, 16 bits first": sweep(GRID | STOP | {"parameters": PAIRS}, 100),
}


def outcome(task):
    """What a trial of a config comes to, always the same: a loss and a fall of its own, now and then a fault."""
    config = task.config
    own = Random(repr((config.rank, config.learning_rate, config.precision)))
    if task.kind != "train":
        yield from (completes if own.random() < 0.9 else breaks)(task)
        return
    if own.random() < 0.08:
        yield from breaks(task, state=own.choice(["oom", "diverged"]))
        return
    loss = 1 + 0.1 * log(config.learning_rate / 1e-3) ** 2 + 1 / config.rank + own.uniform(0, 0.3)
    fall = own.uniform(0.2, 1.0)
    costs = cost(peak_memory_mib=100.0 + config.rank - 20 * (config.precision == "nf4"))
    worker = without_similarity if own.random() < 0.3 else completes
    for report in worker(task):
        step = report.measurement.step
        yield replace(report, measurement=measurement(step, loss + fall * exp(-step / 3)), cost=costs)


def answer(folder: Path, asked) -> dict:
    """What a sweep came to, as far as it is an answer."""
    ledger = Ledger(folder / "ledger.db")
    facts, entries = ledger.facts(), ledger.entries()
    ledger.close()
    trials = [entry.result for entry in entries]
    losses = [(m.step, m.eval_loss_nats) for t in trials for m in t.history]
    chosen = best(counting(trials, asked))
    return {
        "trials": [(t.number, t.key, t.origin, t.state, t.reason, len(t.history)) for t in trials],
        "losses": losses,
        "front": front_of(trials, asked, repeats=None, reference=facts.get(REFERENCE)).to_dict(),
        "best": chosen and (chosen.number, chosen.key),
        "facts": {name: facts.get(name) for name in (ENDED, REFERENCE, LAG)},
    }


def run_at_random(folder: Path, asked, random: Random) -> dict:
    """Tasks interleaved, lost and tried again, the driver killed, workers more and fewer."""
    desk, n_lost, n_crashes = Desk(folder, asked, N_SLOTS), Counter(), 0
    is_hasty = random.random()  # how soon a free worker takes a task up
    for _ in range(5000):
        chance = random.random()
        if chance < 0.01 and n_crashes < 3:
            n_crashes += 1
            desk.crash()
            desk = Desk(folder, asked, random.choice([1, N_SLOTS, 5]))
        name = desk.take(outcome) if random.random() < is_hasty or not desk.running else None
        if desk.driver.finished:
            desk.crash()
            return answer(folder, asked)
        if name is None and desk.running:
            chosen = random.choice(sorted(desk.running))
            task, _ = desk.running[chosen]
            if chance > 0.97 and n_lost[task.key] < 2:
                n_lost[task.key] += 1
                desk.lose(chosen)
                desk.skipped_seconds += random.choice([0, 60])
            else:
                desk.step(chosen)
        elif name is None:
            desk.skipped_seconds += 60
    raise AssertionError("no end")


@cache
def undisturbed(name: str) -> dict:
    with TemporaryDirectory() as folder:
        desk = Desk(Path(folder), SWEEPS[name], N_SLOTS)
        desk.finish(outcome)
        desk.crash()
        return answer(Path(folder), SWEEPS[name])


@pytest.mark.parametrize("name", SWEEPS)
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_no_order_of_ends_and_no_kill_changes_what_is_proposed_and_stopped_and_the_answer(name, seed):
    with TemporaryDirectory() as folder:
        found = run_at_random(Path(folder), SWEEPS[name], Random(seed))
    expected = undisturbed(name)
    for part in expected:
        assert found[part] == expected[part], part


def test_the_sweeps_here_stop_break_and_take_up_again():
    """So that the test above is about something."""
    states = Counter(state for name in SWEEPS for _, _, _, state, *_ in undisturbed(name)["trials"])
    assert states["pruned"] > 10
    assert states["diverged"] + states["oom"] > 3
    assert undisturbed("random until flat")["facts"][ENDED]["why"] == "flat"
