"""A sweep's ledger against what was asked for, and the Optuna study that is rebuilt from it. Pure but for `read`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.analysis.budgets import FINISHED
from orchestrator.analysis.finalists import to_evaluate
from orchestrator.analysis.settled import is_settled
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.status import status_of
from orchestrator.driver.in_order import LAG, N_NUMBERED
from orchestrator.ledger import FAULTS, Ledger
from orchestrator.search.proposer import Proposer
from orchestrator.settings import SweepSettings, stored
from orchestrator.settings.command import command
from trainables.values.config import FINAL_STATES, TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.results import TrialResult

MAX_TO_COME = 3
"""What is still to come is named up to so many things, and counted beyond."""
LEFT_BY_TRIALS = ("adapters", "front.json", "trials.parquet")
Part = Literal["settings.json", "ledger", "study", "adapters", "front.json", "trials.parquet", "files", "MLflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as the ledger, or as the sweep's settings, have it.

    Attributes:
        key: of the trial whose adapter is damaged or gone.
        run_id, model_id: of the MLflow run or model that has to go before MLflow is written again.
    """

    part: Part
    text: str
    key: str | None = None
    run_id: str | None = None
    model_id: str | None = None

    def __str__(self) -> str:
        return f"{self.part}: {self.text}"

    def to_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return {"part": self.part, "text": self.text}


def read(settings: SweepSettings, folder: Path) -> SweepSnapshot:
    """Read a copy of the ledger, under the settings that the sweep began with.

    An older ledger does not hold them: those of settings.json stand for them.

    Raises:
        ConfigError: there is none, or its rows cannot be read.
        LedgerDamaged: see orchestrator.ledger.schema.connect.
    """
    with closing(Ledger(folder / "ledger.db", read_only=True)) as ledger:
        try:
            snapshot = SweepSnapshot.of(settings, ledger)
            asked = snapshot.facts.get(stored.ASKED)
            edits = tuple(stored.edits(settings, asked))
            if edits:
                began = stored.of_json(asked).model_copy(update={"tracking_uri": settings.tracking_uri})
                snapshot = replace(snapshot, settings=began, edits=edits)
            _ = snapshot.workload, snapshot.front  # what they are made of is rows too
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{ledger.path} holds rows that cannot be read ({type(error).__name__}: {reason})"
            ) from None
    return snapshot


def of_ledger(kept: SweepSnapshot) -> Iterator[Difference]:
    """Exactly the asked-for trials, each key once, each in a final state, each with what a finished one has."""
    for text in _of_ledger(kept):
        yield Difference(part="ledger", text=text)


def _of_ledger(kept: SweepSnapshot) -> Iterator[str]:
    resume = f"go on with: {command()} resume {kept.settings.name}"
    if not kept.entries or kept.workload is None:
        left = [name for name in LEFT_BY_TRIALS if (kept.folder / name).exists()]
        emptied = f"it was emptied: {', '.join(left)} are of trials that it does not hold; restore it from a copy"
        yield emptied if left and kept.facts.get("id") is None else f"no trial was started; {resume}"
        return
    keys = Counter(trial.key for trial in kept.trials)
    for what, count in keys.items():
        if count > 1:
            yield f"key {what[:12]} stands {count} times"
    for number in _gone(kept):
        yield f"trial {number} is gone"
    for trial in kept.trials:
        yield from _of_trial(trial, kept)
    yield from _of_counts(kept)
    if to_come := list(_to_come(kept)):
        more = f" and {len(to_come) - MAX_TO_COME} more" if len(to_come) > MAX_TO_COME else ""
        yield f"still to come: {', '.join(to_come[:MAX_TO_COME])}{more}; {resume}"


def _gone(kept: SweepSnapshot) -> list[int]:
    """Numbers that no trial has.

    Where the search goes in order, those of its first trials and of their baselines stand fixed, see
    orchestrator.driver.in_order: a baseline that is not needed leaves its number free.
    """
    numbers = {trial.number for trial in kept.trials}
    if kept.facts.get(LAG) is None:
        return sorted({*range(max(numbers))} - numbers)
    n_numbered = kept.facts.get(N_NUMBERED, kept.settings.n_trials)
    searched = {trial.number for trial in kept.trials if trial.origin == "search" and trial.number < n_numbered}
    after = range(2 * n_numbered, max(numbers))
    return sorted({*range(max(searched, default=0)), *after} - numbers)


def _of_trial(trial: TrialResult, kept: SweepSnapshot) -> Iterator[str]:
    if kept.workload and kept.workload.protocol_of(trial.config, trial.key) is None:
        yield f"trial {trial.number}: its key {trial.key[:12]} is not that of its config"
    if trial.state == "completed" and not trial.is_whole:
        yield f"trial {trial.number} is completed without a measurement at step {trial.config.max_steps}"
    if trial.state in FINAL_STATES - {"completed"} and not trial.reason:
        yield f"trial {trial.number} is {trial.state} without a reason"


def _of_counts(kept: SweepSnapshot) -> Iterator[str]:
    """More trials than the settings come to, and trials that belong to no other."""
    n_searched = sum(trial.origin == "search" for trial in kept.trials)
    if n_searched > kept.settings.n_trials:
        yield f"{kept.settings.n_trials} configs were asked for, {n_searched} were taken up"
    yield from _of_origins(kept.trials)


def _to_come(kept: SweepSnapshot) -> Iterator[str]:
    """What the settings, the space, the baselines and the finalists come to and the ledger has not."""
    settings, trials = kept.settings, kept.trials
    for trial in trials:
        if trial.state not in FINAL_STATES:
            yield f"trial {trial.number} is {trial.state}"
    ended = kept.ended
    whole = ("trials", "space") if settings.space.method == "grid" else ("trials",)
    early = ended is not None and ended.why not in whole
    over_budget = early and ended.why.startswith("max_")
    status = status_of(trials, settings, ended=early, finished=over_budget)
    if status.n_expected > len(trials):
        yield f"it comes to {status.n_expected} trials, {len(trials)} are there"
    by_config = {trial.config: trial for trial in trials}
    faults = kept.facts.get(FAULTS) or {}
    for trial in trials:
        if f"compare {trial.key}" in faults or trial.state not in FINAL_STATES:
            continue
        if not is_settled(trial, by_config.get(trial.config.at_other_precision)):
            yield f"trial {trial.number} was not compared with its 16-bit baseline"
    if not kept.facts.get(FINISHED) and not over_budget:
        for trial in to_evaluate(trials, settings):
            if trial.test_evaluation is None and f"evaluate {trial.key}" not in faults:
                yield f"finalist {trial.number} was not evaluated on the test rows"


def _of_origins(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Baselines and seed replicates of no trial."""
    searched, candidates = set(), set()
    for trial in trials:
        if trial.origin == "search":
            searched.add(trial.config.at_other_precision)
        if trial.is_of_search:
            candidates.add(_at_any_seed(trial.config))
    for trial in trials:
        if trial.origin == "baseline" and trial.config not in searched:
            yield f"trial {trial.number} is the baseline of no trial"
        if not trial.is_of_search and _at_any_seed(trial.config) not in candidates:
            yield f"trial {trial.number} is no other seed of any trial"


def _at_any_seed(config: TrialConfig) -> TrialConfig:
    """What a trial has in common with its baseline, and both with their runs under other seeds."""
    return replace(config.at("16bit"), seed=0)


def of_study(kept: SweepSnapshot) -> Iterator[Difference]:
    """The Optuna study that a resumed sweep would begin with knows every trial of the search once.

    What it would be told is held against the ledger; the study itself, which copies each trial some times over and
    forgets most of a long sweep's, is not made.
    """
    proposer = Proposer(kept.settings)
    candidates = [e for e in kept.entries if e.result.is_of_search and e.result.state in FINAL_STATES]
    told: Counter[str] = Counter()
    for entry in candidates:
        try:
            if known := proposer.as_told(entry):
                told[known.user_attrs["key"]] += 1
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            yield Difference(part="study", text=f"trial {entry.result.number} cannot be told ({reason})")
    for entry in candidates:
        trial, count = entry.result, told.pop(entry.result.key, 0)
        if count > 1 or (count == 0 and trial.origin == "search"):
            yield Difference(part="study", text=f"trial {trial.number} stands {count} times, expected once")
    if told:
        yield Difference(part="study", text=f"{told.total()} trials are not in the ledger")
