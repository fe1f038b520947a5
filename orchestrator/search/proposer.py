"""What the search tries next: an in-memory Optuna study, a projection of the ledger.

Every candidate that is settled is told once: completed with all its objectives; one that was stopped with the end that
the completed trials' curves let expect, once there are some; anything else as pruned. A trial that broke, or whose
similarity is too low, violates a constraint (told as failed, TPE would go on asking around it).
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.analysis.front import dissimilarity, losses_of
from orchestrator.pruning.learning_curves import LearningCurves, losses_at, measured
from orchestrator.search.design import N_FIRST, first_points
from orchestrator.search.halves import FULL, PRECISION, Halves
from orchestrator.search.history import modelled
from orchestrator.search.points import Grid, KeyOf, is_within, ordered
from orchestrator.search.samplers import MODELS, sampler

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry
    from orchestrator.settings import SweepSettings
    from trainables.values.results import TrialResult

Losses = tuple[float, ...]

MAX_MODELLED = 75
"""Trials that a sampler is left with when its history has grown to twice as many, see `modelled`."""
MAX_REPEATS = 10
"""Known points the sampler may propose in a row before the unknown one nearest to the last of them is taken."""
BROKEN = 1.0
"""Constraint value of a trial that ended without usable figures."""


def seed_at(seed: int, place: int) -> int:
    """Of the sampler for the proposal at a place in the order of asking: it knows nothing of those before it."""
    return int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


class Proposer:
    """Optuna behind two calls: `propose` a point that is not known, `tell` what became of a trial.

    Attributes:
        study: of at most twice MAX_MODELLED trials beside those at work; when it is full it is begun anew with those
            that matter.
    """

    def __init__(self, settings: "SweepSettings", max_modelled: int = MAX_MODELLED) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings = settings
        self._space = settings.space
        self._max_modelled = max_modelled
        parameters = settings.space.parameters.items()
        self._ordered = {name: values for name, p in parameters if (values := ordered(p))}
        self._distributions = {
            name: IntDistribution(0, len(self._ordered[name]) - 1) if name in self._ordered else p.in_optuna()
            for name, p in parameters
        }
        self._sampler = sampler(self._space.method, settings.seed)
        self._curves = LearningCurves(measured(settings.objectives))
        self._random = Random(settings.seed)
        self._grid = Grid(settings.space, self._ordered)
        self._asked: dict[str, optuna.Trial] = {}
        self._first: list[dict[str, Any]] | None = None  # points to begin with that were not asked for yet
        self._halves = Halves(self._distributions)
        self.study = self._new_study()

    def _new_study(self) -> optuna.Study:
        directions = ["minimize"] * len(self._settings.objectives)
        return optuna.create_study(directions=directions, sampler=self._sampler)

    def propose(self, key_of: KeyOf, known: Callable[[str], bool], place: int | None = None) -> dict[str, Any] | None:
        """A point of the space whose trial is not known yet, or None when there is none left.

        Args:
            place: in the order of asking. What is drawn then depends on the seed, the place, and what was told and is
                at work, not on how often anything was drawn before.
        """
        if self._space.method == "grid":
            return next(self._grid.left(key_of, known), None)
        if place is not None:
            self._reseed(place)
        params: dict[str, Any] = {}
        for _ in range(MAX_REPEATS):
            self._enqueue_first()
            trial = self.study.ask(self._distributions)
            params = self._decoded(trial.params)
            key = key_of(params)
            if not known(key):
                self._asked[key] = trial
                return self._completing_a_pair(key, key_of, known) or params
            self.study.tell(trial, state=TrialState.FAIL)
        if self._space.n_points is None:
            return None
        point = self._grid.nearest(params, key_of, known, self._random)
        if point is not None:
            self._take(key_of(point), point)
        return point

    def propose_again(self, params: Mapping[str, Any], key_of: KeyOf, known: Callable[[str], bool], place: int) -> None:
        """Bring the study to where it was once this point had been proposed at a place, as a resumed sweep needs.

        A sampler that models what it was told is not asked again; of the others some keep a state in their study.
        """
        key = key_of(params)
        if self._space.method in MODELS:
            while (first := self._next_first()) and known(key_of(self._decoded(first))):
                pass
        elif self._space.method != "grid":
            again = self.propose(key_of, known, place)
            other = key_of(again) if again is not None else key
            if other != key:  # of another version of Optuna, say
                self.study.tell(self._asked.pop(other), state=TrialState.FAIL)
        if self._space.method != "grid" and key not in self._asked:
            self._take(key, params)

    def _take(self, key: str, params: Mapping[str, Any]) -> None:
        """Let the study hold a point as being at work without having asked for it; one outside the space it cannot."""
        coded = self._coded(params)
        if coded is None:
            return
        at_work = create_trial(state=TrialState.RUNNING, params=coded, distributions=self._distributions)
        self.study.add_trial(at_work)
        self._asked[key] = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[-1]._trial_id)

    def _reseed(self, place: int) -> None:
        """Draw anew from here on. A quasi-random sequence stays the one that it is."""
        seed = seed_at(self._settings.seed, place)
        self._random = Random(seed)
        if self._space.method != "qmc":
            self.study.sampler = self._sampler = sampler(self._space.method, seed)

    def is_left(self, key_of: KeyOf, known: Callable[[str], bool]) -> bool:
        """Whether there is a point whose trial is not known; where the space has no end there always is."""
        return self._space.n_points is None or next(self._grid.left(key_of, known), None) is not None

    def _completing_a_pair(self, key: str, key_of: KeyOf, known: Callable[[str], bool]) -> dict[str, Any] | None:
        """In place of the point that was asked for under this key, one that needs no baseline; None where none does."""
        asked = self._asked[key].params
        if self._space.method not in MODELS:
            return None
        half = self._halves.nearest(asked, lambda point: not known(key_of(self._decoded(point))))
        if half is None or half == asked:
            return None
        self.study.tell(self._asked.pop(key), state=TrialState.FAIL)
        point = self._decoded(half)
        self._take(key_of(point), point)
        return point

    def _enqueue_first(self) -> None:
        """Let the study ask for the next point to begin with."""
        if first := self._next_first():
            self.study.enqueue_trial(first)

    def _next_first(self) -> dict[str, Any] | None:
        """The next point to begin with; none where enough trials were known before, or all were asked for."""
        if self._first is None:
            begins = self._space.method in MODELS and len(self.study.get_trials(deepcopy=False)) < N_FIRST
            self._first = first_points(self._distributions, self._settings.seed) if begins else []
            if self._halves.is_searched:  # at 4 bits each would cost its baseline too, before anything is known
                self._first = [{**point, PRECISION: FULL} for point in self._first]
        return self._first.pop(0) if self._first else None

    def _decoded(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point of the study as the space has it."""
        return {n: self._ordered[n][v] if n in self._ordered else v for n, v in point.items()}

    def tell(self, entry: "Entry", excess: float | None = None) -> None:
        """Tell the study about a settled trial, whether it asked for it or not (a baseline, a resumed sweep).

        Args:
            excess: predicted peak beyond the device's memory, as a share of it; None where not known.
        """
        trial = self._asked.pop(entry.result.key, None)
        if entry.result.state == "completed" and (point := self._coded(entry.params)):
            self._halves.completed(point)
        if trial is not None:
            self.learn(entry, excess, trial)
        elif known := self.as_told(entry, excess):
            self._know(known)

    def learn(self, entry: "Entry", excess: float | None = None, trial: optuna.Trial | None = None) -> None:
        """Tell the study about a trial, of this sweep or of another one over the same space, under whatever seed.

        Args:
            excess: as of `tell`.
            trial: of the study, where it asked for this one.
        """
        if trial is None:
            if known := self._frozen(entry, excess):
                self._know(known)
            return
        state, losses, constraints = self._end(entry.result, excess)
        trial.set_user_attr("key", entry.result.key)
        for name, violation in constraints.items():
            trial.set_constraint(name, violation)
        self.study.tell(trial, losses, state=state)
        self._shorten()

    def as_told(self, entry: "Entry", excess: float | None = None) -> FrozenTrial | None:
        """What the study is told of a settled trial that it did not ask for, as after a resume.

        None of a trial that is no point of this space: a baseline at a precision that is not searched.
        """
        found = self._frozen(entry, excess)
        return found if found and self._settings.config(dict(entry.params)) == entry.result.config else None

    def _frozen(self, entry: "Entry", excess: float | None) -> FrozenTrial | None:
        """A settled trial as the study knows it; None where its point is not of this space."""
        params = self._coded(entry.params)
        if params is None:
            return None
        state, losses, constraints = self._end(entry.result, excess)
        return create_trial(
            state=state,
            values=losses,
            params=params,
            distributions=self._distributions,
            user_attrs={"key": entry.result.key},
            constraints=constraints,
        )

    def _know(self, trial: FrozenTrial) -> None:
        self.study.add_trial(trial)
        self._shorten()

    def _coded(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """A point as the study knows it; None where it is not of this space."""
        found: dict[str, Any] = {}
        for name, dist in self._distributions.items():
            values = self._ordered.get(name)
            if name not in params or not (params[name] in values if values else is_within(dist, params[name])):
                return None
            found[name] = values.index(params[name]) if values else params[name]
        return found

    def _end(self, result: "TrialResult", excess: float | None) -> tuple[TrialState, Losses | None, dict[str, float]]:
        """Learn how a settled trial ended: its state, its losses and by how much it violates constraints."""
        if result.is_whole:
            self._curves.learn(result.history, result.cost)
        constraints = {"memory": _memory_violation(result, excess)}
        losses = losses_of(result, self._settings.objectives)
        gap = dissimilarity(result, self._settings.min_similarity)
        if result.state == "completed" and losses is not None and gap is not None:
            return TrialState.COMPLETE, losses, constraints | {"similarity": gap}
        expected = self._expected(result)
        if expected is not None:
            return TrialState.COMPLETE, expected, constraints | {"similarity": 0.0}
        return TrialState.PRUNED, None, constraints | {"similarity": 0.0 if result.state == "pruned" else BROKEN}

    def _expected(self, result: "TrialResult") -> Losses | None:
        """Where a stopped trial would have come to, for the sampler alone; None where that cannot be said."""
        objectives = self._settings.objectives
        if result.state != "pruned" or not result.history or not result.cost or measured(objectives) != objectives:
            return None
        last = result.history[-1]
        whole, cost = result.is_whole, result.cost
        end = losses_at(last, cost, objectives) if whole else self._curves.typical(result.history, cost)
        return None if end is None else tuple(end.tolist())

    def _shorten(self) -> None:
        """Begin a full study anew: asking takes a time that grows with its trials."""
        trials = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if len(ended) <= 2 * self._max_modelled:  # those at work would be there anew
            return
        self.study = self._new_study()
        self.study.add_trials(modelled(ended, self._max_modelled))
        for key, trial in self._asked.items():  # at work: the sampler keeps away from them
            self.study.enqueue_trial(trial.params)
            self._asked[key] = self.study.ask(self._distributions)


def _memory_violation(result: "TrialResult", excess: float | None) -> float:
    """At most 0 where a trial fitted the device; of one that did not, the more the further its prediction is off."""
    if result.state not in ("refused", "oom"):
        return 0.0
    return max(excess or 0.0, BROKEN if result.state == "oom" else 1e-6)
