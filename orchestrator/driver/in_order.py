"""The same command, the same answer: what a proposal may know depends on its place in the order of asking alone.

Delayed feedback with a fixed delay: proposal k of the search sees the final results of the proposals below k - L, all
of them and no others, and the stopping rule of its trial the curves of those alone. So the driver does not launch
proposal k before they are final, and neither which worker was quicker nor a kill and a resume can change what is
proposed, what is stopped and at which rung, and so the front. L is twice the workers that a sweep starts with: then as
many trials as workers may lag behind the slowest one before any worker waits (`make bench ARGS=order`).

The 16-bit baseline of a 4-bit trial begins when that one has ended; it is seen as if it was proposed L places after it.
Where the search is told a similarity, because one is an objective or a least one is asked for, both are one result.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.objectives import OBJECTIVES
from trainables.values.config import FINAL_STATES

if TYPE_CHECKING:
    from orchestrator.driver.feedback import OnSeen, Rows
    from orchestrator.ledger import Ledger
    from orchestrator.ledger.rows import Entry
    from orchestrator.pruning.rule import StoppingRule
    from orchestrator.search.proposer import Proposer
    from orchestrator.settings import SweepSettings
    from trainables.values.config import Origin
    from trainables.values.results import Cost, Measurement, TrialResult

LAG = "lag"
"""Fact: L, the proposals before its own whose results a proposal does not see. No such fact: of an asynchronous sweep,
and in ledgers from before."""
STOPPED_AT = "stopped_at"
"""Fact: key -> step at which the rule stopped a 16-bit trial that a 4-bit one needed whole all the same."""
N_NUMBERED = "n_numbered"
"""Fact: configs that were asked for at the start. Their places are their numbers, as many more are their baselines'."""
LAG_PER_WORKER = 2


def lag_of(settings: "SweepSettings", ledger: "Ledger", n_workers: int) -> int | None:
    """L of a sweep: the one that it began with; None where its results are learned as they come."""
    lag = ledger.fact(LAG)
    if settings.asynchronous or (lag is None and ledger.trials()):
        return None
    if lag is None:
        lag = LAG_PER_WORKER * max(1, n_workers)
        ledger.set_fact(LAG, lag)
        ledger.set_fact(N_NUMBERED, settings.n_trials)
    return lag


@dataclass(frozen=True, slots=True)
class Sight:
    """What was known when a point was proposed.

    Attributes:
        rule: the stopping rule as it was; never asked itself, but copies of it.
        has_baseline: whether a completed 16-bit trial of the same config was among it.
    """

    rule: "StoppingRule"
    has_baseline: bool


class InOrder:
    """A Feedback, see orchestrator.driver.feedback.

    It keeps nothing that the ledger does not have: `take_up` goes through the proposals again, each with its sight.
    """

    def __init__(
        self,
        lag: int,
        settings: "SweepSettings",
        ledger: "Ledger",
        proposer: "Proposer",
        rule: "StoppingRule",
        rows: "Rows",
        on_seen: "OnSeen",
    ) -> None:
        self._lag = lag
        needs_similarity = any(OBJECTIVES[name].source == "similarity" for name in settings.objectives)
        self._pair_lag = 0 if needs_similarity or settings.min_similarity is not None else lag
        self._n_numbered = ledger.fact(N_NUMBERED, settings.n_trials)
        self._ledger = ledger
        self._proposer = proposer
        self._rule = rule  # has learned what is seen
        self._rows = rows
        self._on_seen = on_seen
        self._stopped_at: dict[str, int] = ledger.fact(STOPPED_AT, {})
        self._keys: list[str] = []  # by place
        self._places: dict[str, int] = {}
        self._twins: dict[str, tuple[int, int]] = {}  # key of a 4-bit proposal's baseline: its first place, its last
        self._n_seen = 0
        self._seen: dict[str, TrialResult] = {}
        self._whole: set[str] = set()  # seen as they ended, not as the rule stopped them
        self._needed: set[str] = set()  # baselines of completed 4-bit trials that were seen
        self._sights: dict[str, Sight] = {}

    # --- the order

    def take_up(self) -> None:
        for entry in [one for one in self._rows.entries if one.result.origin == "search"]:
            place = len(self._keys)
            self._see(place - self._lag)
            if not self._proposer.is_left(self._rows.key_of, self._is_taken):
                self._see(place)
            self._proposer.propose_again(entry.params, self._rows.key_of, self._is_taken, place)
            self.took(entry.result)

    def settled(self, entry: "Entry") -> None:
        """It is looked at when its turn comes."""

    def is_ready(self) -> bool:
        """Whether what the next proposal may see is final; from now on it is seen.

        Where only baselines of unseen 4-bit trials are left of a space, it is all of them: those that turn out not to
        need one leave theirs to be proposed.
        """
        place = len(self._keys)
        if not self._are_final(place - self._lag):
            return False
        self._see(place - self._lag)
        if self._proposer.is_left(self._rows.key_of, self._is_taken):
            return True
        if not self._are_final(place):
            return False
        self._see(place)
        return True

    def propose(self) -> dict[str, Any] | None:
        return self._proposer.propose(self._rows.key_of, self._is_taken, len(self._keys))

    def took(self, trial: "TrialResult") -> None:
        place, has_baseline = len(self._keys), False
        self._keys.append(trial.key)
        self._places[trial.key] = place
        if trial.config.precision == "nf4":
            twin = self._rows.other_half(trial.config)
            first, _ = self._twins.get(twin, (place, place))
            self._twins[twin] = first, place
            baseline = self._rows.entry(twin)
            has_baseline = twin in self._whole and baseline is not None and baseline.result.state == "completed"
        if self._rows.is_open(trial.key):
            self._sights[trial.key] = Sight(deepcopy(self._rule), has_baseline)

    def number(self, key: str, origin: "Origin") -> int:
        """A proposal's is its place; that of a baseline follows from the first 4-bit proposal that it belongs to.

        Of all others, such as proposals beyond those that a sweep began with, it is the next one after all of these.
        """
        if origin == "search" and len(self._keys) < self._n_numbered:
            return len(self._keys)
        if origin == "baseline" and self._twins[key][0] < self._n_numbered:
            return self._n_numbered + self._twins[key][0]
        return max(2 * self._n_numbered, self._ledger.next_number())

    def end(self) -> None:
        self._see(len(self._keys))
        for key in self._keys[max(0, self._n_seen - self._pair_lag) :]:
            self._see_pair(key)

    # --- what is seen

    def seen(self) -> "list[TrialResult]":
        return list(self._seen.values())

    def _is_taken(self, key: str) -> bool:
        """Whether a point is no more to be proposed, as far as the next proposal sees: one that was proposed, or a
        baseline that a 4-bit trial brought or, as long as its end is not seen, might bring."""
        is_pending = key in self._twins and self._twins[key][1] >= self._n_seen
        return is_pending or key in self._places or key in self._needed

    def _are_final(self, n: int) -> bool:
        """Whether the first n proposals came to their ends."""
        n_pairs = self._n_seen - self._pair_lag
        trials, pairs = self._keys[self._n_seen : max(n, 0)], self._keys[max(n_pairs, 0) : max(n - self._pair_lag, 0)]
        is_pair_open = any(self._rows.is_open(key) and key not in self._stopped_at for key in pairs)
        return all(map(self._is_final, trials)) and not is_pair_open

    def _is_final(self, key: str) -> bool:
        return key in self._stopped_at or self._rows.entry(key).result.state in FINAL_STATES

    def _see(self, n: int) -> None:
        """Show the sampler and the rule the first n proposals, in their order."""
        while self._n_seen < n:
            place, key = self._n_seen, self._keys[self._n_seen]
            self._n_seen += 1
            self._sights.pop(key, None)
            entry = self._rows.entry(key)
            if entry.result.config.precision == "nf4" and entry.result.state == "completed":
                self._needed.add(self._rows.other_half(entry.result.config))
            self._show(self._as_stopped(entry))
            if place >= self._pair_lag:
                self._see_pair(self._keys[place - self._pair_lag])

    def _see_pair(self, key: str) -> None:
        """Show what became of the baseline of a proposal, and that it is known now of the proposal itself."""
        trial = self._rows.entry(key).result
        if trial.config.precision != "nf4" or trial.state != "completed":
            return
        self._know(trial)
        twin = self._rows.other_half(trial.config)
        baseline = self._rows.entry(twin)
        if baseline is not None and twin not in self._whole and not self._rows.is_open(twin):
            self._whole.add(twin)
            self._show(baseline)

    def _as_stopped(self, entry: "Entry") -> "Entry":
        """A proposal's own end: as far as the rule let it come, whatever a 4-bit trial needed of it since, and, where
        its pair is seen later, without similarity."""
        if self._pair_lag and entry.result.similarity:
            entry = replace(entry, result=replace(entry.result, similarity=None))
        step = self._stopped_at.get(entry.result.key)
        if step is None:
            if entry.result.state != "pruned":  # a 4-bit trial may yet need it whole
                self._whole.add(entry.result.key)
            return entry
        history = tuple(measurement for measurement in entry.result.history if measurement.step <= step)
        return replace(entry, result=replace(entry.result, state="pruned", history=history))

    def _show(self, entry: "Entry") -> None:
        self._proposer.tell(entry, self._rows.excess(entry.result.config))
        self._rule.learn(entry.result)
        self._know(entry.result)

    def _know(self, trial: "TrialResult") -> None:
        self._seen.pop(trial.key, None)  # it counts from the last that became known of it
        self._seen[trial.key] = trial
        self._on_seen(self.seen)

    # --- what is stopped

    def why_stop(
        self, trial: "TrialResult", measurement: "Measurement", cost: "Cost", *, is_last: bool, may_stop: bool
    ) -> str | None:
        """By the trial's own sight alone, so that a trial that was lost and begins again is stopped where it was."""
        sight = self._sights.get(trial.key)
        if sight is None or trial.key in self._stopped_at:
            return None
        rule = deepcopy(sight.rule)
        for before in trial.history:
            if before.step < measurement.step:
                rule.at_rung(trial.key, before, cost, may_stop=False)
        if is_last:
            needs_baseline = trial.config.precision == "nf4" and not sight.has_baseline
            return rule.at_end(trial.key, measurement, cost, may_stop=needs_baseline)
        why = rule.at_rung(trial.key, measurement, cost, may_stop=True)
        if why is None or may_stop:
            return why
        self._note_stop(trial.key, measurement.step)
        return None

    def why_stop_import(self, trial: "TrialResult", measurement: "Measurement", cost: "Cost") -> str | None:
        is_last = measurement.step == trial.config.max_steps
        return self.why_stop(trial, measurement, cost, is_last=is_last, may_stop=True)

    def needed(self, trial: "TrialResult") -> None:
        if trial.key in self._places:
            self._note_stop(trial.key, trial.history[-1].step)

    def _note_stop(self, key: str, step: int) -> None:
        self._stopped_at.setdefault(key, step)
        self._ledger.set_fact(STOPPED_AT, self._stopped_at)
