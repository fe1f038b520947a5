"""How long a sweep takes from here: what is still to run, played forward on its workers. Pure.

Three stretches follow each other, as the driver has them: the search with its baselines, runs under other seeds, and
evaluations on the test rows. What the search will propose takes as long as what it proposed lately, stopped trials
included; baselines and runs of finalists are never stopped. What none can know yet, such as how many 4-bit trials will
complete and so bring a baseline, is expected to go on as it went so far.
"""

from collections.abc import Sequence
from math import log
from operator import attrgetter

from orchestrator.analysis.finalists import VERDICT_SEEDS, Wanted, to_evaluate, wanted
from orchestrator.analysis.moment import Moment
from orchestrator.analysis.pace import Pace, makespan
from orchestrator.settings import SweepSettings
from trainables.values.config import FINAL_STATES, TrialConfig
from trainables.values.results import TrialResult

EVALUATION_SHARE = 0.5
"""Of a whole trial's time, for a test evaluation before one has ended; a guess."""


def seconds_left(
    trials: Sequence[TrialResult],
    settings: SweepSettings,
    moment: Moment,
    n_to_propose: int,
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
    runs = _runs_to_come(trials, settings, n_to_propose, known.union(baselines))
    growth = _front_growth(trials, n_to_propose)
    queued = [trial.config for trial in trials if trial.state == "queued"]
    jobs = [pace.of_whole(config.precision) for config in (*queued, *baselines)]
    jobs += [pace.of_proposal()] * n_to_propose
    jobs += [pace.of_whole("16bit")] * round(_n_baselines_ahead(trials, settings, n_to_propose))
    later = [pace.of_whole(run.config.precision) for run in runs]
    later += [pace.of_whole()] * _n_runs_ahead(trials, settings, n_to_propose, growth, len(runs))
    busy = [_left_of(trial, pace, moment.now) for trial in trials if trial.state == "running"]
    idle = [0.0] * pace.n_workers
    free = [*busy, *idle[len(busy) :]]
    if any(not trial.is_of_search for trial in trials):  # runs under other seeds have begun: nothing waits for any
        trained = makespan(free, [*jobs, *later])
    else:
        trained = makespan(free, jobs) + makespan(idle, later)
    n_done, n_left = _n_evaluations(trials, settings, runs)
    each = EVALUATION_SHARE * pace.of_whole()
    if busy or jobs or later:
        return trained + makespan(idle, [each] * round(n_left * growth))
    last = max(trial.ended_at or 0.0 for trial in trials)
    return _evaluating(n_done, n_left, len(idle), each, max(0.0, moment.now - max(last, moment.began_at)))


def _front_growth(trials: Sequence[TrialResult], n_to_propose: int) -> float:
    """How many times as many finalists there will be as there are: a front of n trials grows as log n.

    Of two independent objectives it has 1 + 1/2 + ... + 1/n members on average (Barndorff-Nielsen and Sobel 1966).
    """
    n_searched = max(1, sum(trial.is_of_search for trial in trials))
    return (1 + log(n_searched + n_to_propose)) / (1 + log(n_searched))


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
    trials: Sequence[TrialResult], settings: SweepSettings, n_to_propose: int, known: set[TrialConfig]
) -> list[Wanted]:
    """Runs under other seeds that the finalists of now lack, and the baselines of 4-bit ones among them."""
    growth = 1 + n_to_propose / max(1, sum(trial.is_of_search for trial in trials))
    found: dict[TrialConfig, Wanted] = {}
    for run in wanted(trials, settings, growth):
        found.setdefault(run.config, run)
        if run.config.precision == "nf4":
            pair = Wanted(config=run.config.at_other_precision, origin="baseline replicate", like=run.like)
            found.setdefault(pair.config, pair)
    return [run for config, run in found.items() if config not in known]


def _n_runs_ahead(
    trials: Sequence[TrialResult], settings: SweepSettings, n_to_propose: int, growth: float, n_now: int
) -> int:
    """Runs under other seeds of finalists that are still to be found, as long as the search goes on.

    Args:
        n_now: those of the finalists of now.
    """
    n_first = 0.0  # of the first finalist at 4 bits
    if _share_of_4bit(settings) and not any(trial.similarity for trial in trials):
        n_pair = 2 * (VERDICT_SEEDS - 1)
        n_first = settings.baseline_seeds + (n_pair if settings.n_trials > 3 * n_pair else 0)
        n_first *= min(1.0, _n_4bit_ahead(trials, settings, n_to_propose))
    return round(n_now * (growth - 1) + n_first)


def _n_evaluations(trials: Sequence[TrialResult], settings: SweepSettings, runs: Sequence[Wanted]) -> tuple[int, int]:
    """How many test evaluations are done, and how many are still to come.

    Args:
        runs: under other seeds, still to come.
    """
    chosen = to_evaluate(trials, settings)
    n_done = sum(trial.test_evaluation is not None for trial in chosen)
    coming = [*runs, *(trial for trial in trials if trial.state not in FINAL_STATES)]
    return n_done, len(chosen) - n_done + sum(run.origin == "replicate" for run in coming)


def _evaluating(n_done: int, n_left: int, n_workers: int, expected: float, behind: float) -> float:
    """Seconds of the evaluations that are left.

    Args:
        expected: seconds of one, which holds as long as those that are done and those at work allow it.
        behind: seconds since they began.
    """
    if not n_left:
        return 0.0
    worked, n_busy = behind * n_workers, min(n_workers, n_left)
    each = max(expected, worked / (n_done + n_workers))
    if not n_done:
        return makespan([each - behind] * n_busy, [each] * (n_left - n_busy))
    if behind >= expected:  # some may have been done beside the last trials: soon after those that says nothing
        each = min(each, worked / n_done)
    return makespan([each / 2] * n_busy, [each] * (n_left - n_busy))  # those at work are half done, on average
