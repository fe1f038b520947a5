"""How long a sweep takes from here: what is still to run, played forward on its workers. Pure.

Two stretches follow each other, as the driver has them: the search with its baselines, and runs under other seeds with
the evaluations on the test rows among them. What the search will propose takes as long as what it proposed lately,
stopped trials included; baselines and runs of finalists are never stopped. What none can know yet, such as how many
4-bit trials will complete and so bring a baseline, is expected to go on as it went so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from operator import attrgetter
from statistics import fmean

from orchestrator.analysis.finalists import VERDICT_SEEDS, Wanted, evaluations, wanted
from orchestrator.analysis.front import front_of
from orchestrator.analysis.moment import Moment
from orchestrator.analysis.pace import STALLED, Pace, makespan
from orchestrator.settings import SweepSettings
from trainables.values.config import FINAL_STATES, TrialConfig
from trainables.values.results import TrialResult


def seconds_left(
    trials: Sequence[TrialResult], settings: SweepSettings, moment: Moment, n_to_propose: int
) -> float | None:
    """Until the last task has ended; None before a trial has ended.

    Args:
        n_to_propose: trials that the search will still take up.
    """
    pace = moment.pace
    if pace is None:
        return None
    known = set(map(attrgetter("config"), trials))
    baselines = _missing_baselines(trials, known)
    n_baselines = len(baselines) + round(_n_baselines_ahead(trials, settings, n_to_propose))
    is_over = any(not trial.is_of_search for trial in trials)  # runs under other seeds have begun
    grown = Grown.by(trials, 0 if is_over else n_to_propose + n_baselines)
    runs = _runs_to_come(trials, settings, grown, known.union(baselines))
    n_4bit = _n_4bit_finalists_ahead(trials, settings, n_to_propose, grown)
    queued = [trial.config for trial in trials if trial.state == "queued"]
    jobs = [pace.of_whole(config.precision) for config in queued]
    jobs += [pace.of_proposal()] * n_to_propose
    jobs += [_of_baseline(trials, pace)] * n_baselines
    later = [pace.of_whole(run.config.precision) for run in runs]
    later += [pace.of_whole()] * round(_n_runs_ahead(trials, settings, grown, len(runs), n_4bit))
    busy = [_left_of(trial, pace, moment.now) for trial in trials if trial.state == "running"]
    idle = [0.0] * pace.n_workers
    free = [*busy, *idle[len(busy) :]]
    if is_over:  # nothing waits for any
        trained = makespan(free, [*jobs, *later])
    else:
        trained = makespan(free, jobs) + makespan(idle, later)
    left = _evaluations(trials, settings, runs, pace)
    if busy or jobs or later:
        ahead = [pace.of_evaluation("nf4")] * round(n_4bit)
        return trained + grown.front * makespan(idle, left) + makespan(idle, ahead)
    ends = [trial.ended_at or 0.0 for trial in trials] + [span.ended for span in pace.evaluated]
    last = max(ends)  # before this process began nothing is known of its tasks
    return _evaluating(left, len(idle), max(0.0, moment.now - last) if last >= moment.began_at else 0.0)


@dataclass(frozen=True, slots=True)
class Grown:
    """What the search will be: trials that have ended, baselines included, and all that it will come to."""

    n_now: int
    n_then: int

    @classmethod
    def by(cls, trials: Sequence[TrialResult], n_more: int) -> "Grown":
        """By trials that nobody knows yet."""
        states = [trial.state for trial in trials if trial.is_of_search]
        return cls(max(1, sum(state in FINAL_STATES for state in states)), len(states) + n_more)

    @property
    def search(self) -> float:
        """How many times as long as it is."""
        return self.n_then / self.n_now

    @property
    def front(self) -> float:
        """How many times as many finalists as there are: a front of n trials grows as log n.

        Of two independent objectives it has 1 + 1/2 + ... + 1/n members on average (Barndorff-Nielsen and Sobel 1966).
        """
        return (1 + log(self.n_then)) / (1 + log(self.n_now))


def _left_of(trial: TrialResult, pace: Pace, now: float) -> float:
    """Seconds that a trial at work still takes."""
    return max(0.0, pace.expected(trial) - max(0.0, now - (trial.started_at or now)))


def _missing_baselines(trials: Sequence[TrialResult], known: set[TrialConfig]) -> list[TrialConfig]:
    """Of 4-bit trials that completed, and of runs under other seeds, which will; of points of a grid the search's."""
    found: dict[TrialConfig, None] = {}
    for trial in trials:
        comes = trial.state == "completed" or (not trial.is_of_search and trial.state not in FINAL_STATES)
        if trial.config.precision == "nf4" and comes and trial.config.at_other_precision not in known:
            found[trial.config.at_other_precision] = None
    return list(found)


def _share_of_4bit(settings: SweepSettings) -> float:
    """Share of the space that is 4-bit."""
    precision = settings.space.parameters.get("precision")
    samples = precision.samples if precision else (settings.first_config.precision,)
    return sum(sample == "nf4" for sample in samples) / len(samples)


def _n_4bit_ahead(trials: Sequence[TrialResult], settings: SweepSettings, n_to_propose: int) -> float:
    """4-bit trials of the search at work and expected of it, by their share so far and two made-up trials."""
    searched = [trial for trial in trials if trial.origin == "search"]
    nf4 = [trial for trial in searched if trial.config.precision == "nf4"]
    share = (len(nf4) + 2 * _share_of_4bit(settings)) / (len(searched) + 2)
    return share * n_to_propose + sum(trial.state not in FINAL_STATES for trial in nf4)


def _n_4bit_finalists_ahead(
    trials: Sequence[TrialResult], settings: SweepSettings, n_to_propose: int, grown: Grown
) -> float:
    """4-bit finalists that are still to be found: as large a share of the front as of the search, and at least one."""
    n_coming = _n_4bit_ahead(trials, settings, n_to_propose)
    n_ended = sum(t.is_of_search and t.state in FINAL_STATES and t.config.precision == "nf4" for t in trials)
    members = front_of(trials, settings, repeats=None).members
    n_now = sum(trial.config.precision == "nf4" for trial in members)
    n_then = max(1.0, (n_ended + n_coming) / grown.n_then * len(members) * grown.front)
    return min(n_coming, max(0.0, n_then - n_now * grown.front))


def _n_baselines_ahead(trials: Sequence[TrialResult], settings: SweepSettings, n_to_propose: int) -> float:
    """Baselines that those are expected to bring, by the share of 4-bit trials that brought one, and two made-up trials
    of which one did: others are stopped, or complete a pair."""
    prior = _share_of_4bit(settings)
    if prior == 0 or (prior < 1 and settings.space.method == "grid"):  # a baseline is a point of such a grid itself
        return 0.0
    n_ended = sum(t.origin == "search" and t.config.precision == "nf4" and t.state in FINAL_STATES for t in trials)
    n_brought = sum(trial.origin == "baseline" for trial in trials)
    return (n_brought + 1) / (n_ended + 2) * _n_4bit_ahead(trials, settings, n_to_propose)


def _runs_to_come(
    trials: Sequence[TrialResult], settings: SweepSettings, grown: Grown, known: set[TrialConfig]
) -> list[Wanted]:
    """Runs under other seeds that the finalists of now lack, and the baselines of 4-bit ones among them."""
    found: dict[TrialConfig, Wanted] = {}
    for run in wanted(trials, settings, grown.search):
        found.setdefault(run.config, run)
        if run.config.precision == "nf4":
            pair = Wanted(config=run.config.at_other_precision, origin="baseline replicate", like=run.like)
            found.setdefault(pair.config, pair)
    return [run for config, run in found.items() if config not in known]


def _n_runs_ahead(
    trials: Sequence[TrialResult], settings: SweepSettings, grown: Grown, n_now: int, n_4bit_finalists: float
) -> float:
    """Runs under other seeds of finalists that are still to be found, as long as the search goes on.

    Args:
        n_now: runs of the finalists of now.
        n_4bit_finalists: still to be found, as expected.
    """
    n_seeds = settings.finalist_seeds - 1
    n_ahead = n_now * (grown.front - 1) + n_4bit_finalists * (n_seeds + max(n_seeds, settings.baseline_seeds))
    if _share_of_4bit(settings) and not any(trial.similarity for trial in trials):  # no verdict has its trial yet
        n_pair = 2 * (VERDICT_SEEDS - 1)
        is_short = 3 * n_pair < grown.n_then
        n_verdict = settings.verdict_seeds or (VERDICT_SEEDS if is_short else 1)
        n_ahead += max(0, n_verdict - 1 - n_seeds)
    return n_ahead


def _of_baseline(trials: Sequence[TrialResult], pace: Pace) -> float:
    """Seconds of a 16-bit baseline, and of the comparison that it brings as long as no trial's seconds include one."""
    is_included = any(trial.similarity for trial in trials)
    return pace.of_whole("16bit") + (0.0 if is_included else pace.of_comparison())


def _evaluations(
    trials: Sequence[TrialResult], settings: SweepSettings, runs: Sequence[Wanted], pace: Pace
) -> list[float]:
    """Seconds that the test evaluations still to come are expected to take, by those that are done.

    Args:
        runs: under other seeds, still to come.
    """
    coming = [run for run in runs if run.origin == "replicate"]
    coming += [trial for trial in trials if trial.state not in FINAL_STATES and trial.origin == "replicate"]
    done, left = [], [pace.of_evaluation(run.config.precision) for run in coming]
    for trial in evaluations(trials, settings):
        (done if trial.test_evaluation else left).append(pace.of_evaluation(trial.config.precision))
    slower = pace.of_evaluations() / fmean(done) if pace.evaluated and sum(done) > 0 else 1.0
    return [slower * seconds for seconds in left]


def _evaluating(left: Sequence[float], n_workers: int, since: float) -> float:
    """Seconds of the evaluations that are left, once nothing else is.

    Args:
        left: seconds that each is expected to take; up to STALLED times, where those at work have taken longer already.
        since: seconds since a task ended last, so that those at work have taken as long.
    """
    if not left:
        return 0.0
    busy, rest = left[:n_workers], left[n_workers:]
    slower = min(STALLED, max(1.0, since / min(busy))) if min(busy) > 0 else 1.0
    return makespan([max(0.0, slower * seconds - since) for seconds in busy], [slower * seconds for seconds in rest])
