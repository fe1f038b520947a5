"""Which trials a report will be about, and what they are measured against: after the search, from its trials.

Pure, and of candidates only (see orchestrator.analysis.front): what is run because of a finalist makes no new one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from orchestrator.analysis.choice import counting, lowest
from orchestrator.analysis.front import front_of, is_candidate
from orchestrator.analysis.sufficient_rank import MIN_SEEDS
from orchestrator.objectives import OBJECTIVES
from orchestrator.settings import SweepSettings
from trainables.values.config import Origin, TrialConfig
from trainables.values.results import TrialResult

N_SEEDS = 2**32
VERDICT_SEEDS = 3
"""Seeds behind a verdict on 4 bits by default, the trial's own included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A run that a finalist needs.

    Attributes:
        config: of the run.
        origin: "replicate" of a finalist, or "baseline replicate" of its baseline.
        like: the finalist's config at the seed that the search used.
    """

    config: TrialConfig
    origin: Origin
    like: TrialConfig


def under_seeds(config: TrialConfig, n_seeds: int) -> list[TrialConfig]:
    """A config under the seeds that follow its own; after 2**32 - 1 comes 0."""
    return [replace(config, seed=(config.seed + i) % N_SEEDS) for i in range(1, n_seeds + 1)]


def finalists(
    trials: Sequence[TrialResult], settings: SweepSettings, others: Iterable[TrialResult] = ()
) -> list[TrialResult]:
    """Trials that get evaluated, by number.

    The members of the front by plain dominance, and the trial of the lowest validation loss: seed replicates tell the
    noise, which may change the front that takes it into account, but not whom they are run for. With several seeds also
    the best of each precision and rank, for the smallest sufficient rank; and the best 4-bit trial where none is on the
    front, so that 4 bits never go without seed replicates.

    Args:
        others: are to be among them, too.
    """
    members = front_of(trials, settings, repeats=None).members
    least = lowest(counting(trials, settings))
    chosen = [*members, *([least] if least else []), *_best_4bit(trials, members), *others]
    if settings.finalist_seeds > 1:
        chosen += _best_of_each_rank(trials)
    return _each_once(chosen)


def _each_once(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """By number."""
    found = {trial.key: trial for trial in trials}
    return sorted(found.values(), key=attrgetter("number"))


def _loss(trial: TrialResult) -> tuple[float, int]:
    """Order of preference; of equal losses the earlier trial's goes first."""
    return trial.history[-1].eval_loss_nats, trial.number


def _measured(trials: Sequence[TrialResult]) -> Iterator[TrialResult]:
    return (trial for trial in trials if is_candidate(trial) and trial.history)


def _best_4bit(trials: Sequence[TrialResult], members: Sequence[TrialResult]) -> list[TrialResult]:
    """The 4-bit members of the front, or else the best 4-bit trial that was compared, if there is one."""
    on_front = [trial for trial in members if trial.config.precision == "nf4"]
    compared = [trial for trial in _measured(trials) if trial.similarity]
    return on_front or sorted(compared, key=_loss)[:1]


def _best_of_each_rank(trials: Sequence[TrialResult]) -> list[TrialResult]:
    found: dict[tuple[str, int], TrialResult] = {}
    for trial in sorted(_measured(trials), key=_loss):
        found.setdefault((trial.config.precision, trial.config.rank), trial)
    return list(found.values())


def ranked(trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """The best trial of each precision and rank, where the smallest sufficient rank is asked for.

    As their own runs were chosen for their low loss, the rule takes MIN_SEEDS fresh seeds of each.
    """
    return _best_of_each_rank(trials) if settings.finalist_seeds >= MIN_SEEDS else []


def wanted(trials: Sequence[TrialResult], settings: SweepSettings, growth: float = 1.0) -> list[Wanted]:
    """Runs under other seeds, each once, whether they exist or not.

    Repeats of all finalists, one more of those that ranks are told of, and of the 4-bit one that the verdict is about;
    then replicates of the baselines of 4-bit ones on the front (or of the best), that one's first, as most evaluations
    wait for them. A 4-bit repeat's own baseline is not among them: it is brought like every completed 4-bit trial's.

    Args:
        growth: how many times as long as it is now the search will be, see `n_verdict_seeds`.
    """
    members = front_of(trials, settings, repeats=None).members
    runs: dict[TrialConfig, Wanted] = {}
    chosen, of_ranks = verdict_trial(trials, settings), ranked(trials, settings)
    for finalist in finalists(trials, settings):
        n_seeds = settings.finalist_seeds + (finalist in of_ranks)
        if finalist is chosen:
            n_seeds = max(n_seeds, n_verdict_seeds(finalist, trials, settings, growth))
        for config in under_seeds(finalist.config, n_seeds - 1):
            runs.setdefault(config, Wanted(config=config, origin="replicate", like=finalist.config))
    for trial in sorted(_best_4bit(trials, members), key=lambda trial: trial is not chosen):
        for config in under_seeds(trial.config.at_other_precision, settings.baseline_seeds):
            runs.setdefault(config, Wanted(config=config, origin="baseline replicate", like=trial.config))
    return list(runs.values())


def verdict_trial(trials: Sequence[TrialResult], settings: SweepSettings) -> TrialResult | None:
    """The 4-bit finalist that gets seed replicates for its verdict: the lowest validation loss of those compared."""
    members = front_of(trials, settings, repeats=None).members
    compared = [trial for trial in _best_4bit(trials, members) if trial.similarity]
    return min(compared, key=_loss, default=None)


def n_verdict_seeds(
    trial: TrialResult, trials: Sequence[TrialResult], settings: SweepSettings, growth: float = 1.0
) -> int:
    """Seeds of a 4-bit finalist that are trained at both precisions, its own included.

    By default VERDICT_SEEDS where training the others is predicted to take under a third of the search, else one. From
    steps, so that it is the same whatever was reused of another sweep; and from their measured time where that is an
    objective: elsewhere other work on the machine would decide it.

    Args:
        growth: while the search goes on, how many times as long as now it will be.
    """
    if settings.verdict_seeds is not None:
        return settings.verdict_seeds
    is_timed = any(OBJECTIVES[name].is_timed for name in settings.objectives)
    halves, search_seconds = [trial.config, trial.config.at_other_precision], 0.0
    pair_seconds = 0.0
    for other in trials:
        if other.is_of_search and other.cost and other.history:
            seconds = other.cost.seconds_per_step if is_timed else 1.0
            search_seconds += seconds * other.history[-1].step
            if other.config in halves:
                pair_seconds += seconds * other.config.max_steps
    return VERDICT_SEEDS if 3 * (VERDICT_SEEDS - 1) * pair_seconds < growth * search_seconds else 1


def runs_of(finalist: TrialResult, trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """The finalist and its completed repeats, the search's own seed first."""
    by_config = {trial.config: trial for trial in trials if trial.state == "completed"}
    others = under_seeds(finalist.config, settings.finalist_seeds - 1)
    return [finalist, *filter(None, map(by_config.get, others))]


def paired_runs(trial: TrialResult, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """A 4-bit trial and its completed runs under other seeds, however many were asked for."""
    return [trial, *fresh_runs(trial, trials)]


def fresh_runs(trial: TrialResult, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """A trial's completed runs under other seeds, which took no part in choosing it."""
    return _under_other_seeds(trial.config, trials)


def to_evaluate(trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """Finalists and their repeats, by number, evaluated already or not."""
    runs, of_ranks = [], ranked(trials, settings)
    for finalist in finalists(trials, settings):
        runs += runs_of(finalist, trials, settings)
        if finalist.config.precision == "nf4" or finalist in of_ranks:
            runs += [finalist, *fresh_runs(finalist, trials)]
    return _each_once(runs)


def evaluations(trials: Sequence[TrialResult], settings: SweepSettings) -> list[TrialResult]:
    """Of those to evaluate, all whose evaluation is done or still to come: it failed of the others."""
    return [trial for trial in to_evaluate(trials, settings) if "evaluate" not in trial.failed_evaluations]


def other_seeds(trial: TrialResult, trials: Sequence[TrialResult], n_seeds: int) -> list[TrialResult]:
    """Completed 16-bit runs of a 4-bit trial's config, at most the first `n_seeds` that follow its own."""
    return _under_other_seeds(trial.config.at_other_precision, trials)[:n_seeds]


def _under_other_seeds(config: TrialConfig, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Completed runs of a config under all seeds but its own, those that follow it first."""
    by_distance = {}
    for run in trials:
        distance = (run.config.seed - config.seed) % N_SEEDS
        if run.state == "completed" and distance and replace(run.config, seed=config.seed) == config:
            by_distance[distance] = run
    return [run for _, run in sorted(by_distance.items())]
