"""Whether 4 bits preserve what a trial learned: a threshold, and a seed replicate beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from orchestrator.analysis.finalists import to_evaluate
from orchestrator.analysis.front import is_candidate
from orchestrator.analysis.repeats import Rows
from orchestrator.settings import SweepSettings
from trainables.values.findings import Comparison, flat
from trainables.values.results import Evaluation, TrialResult

Answer = Literal["preserved", "not preserved", "undecided", "evaluation failed"]
EVALUATIONS: Mapping[Evaluation, str] = {
    "compare": "comparing it with its 16-bit baseline",
    "evaluate": "evaluating it on the test rows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An answer with the figures it rests on.

    Attributes:
        answer: see `evaluated`; "evaluation failed" where what it would rest on could not be had.
        reasons: what decided it, in words; all that failed where something failed.
        rows: "test" or "validation", of the trial's comparison; None where it was not compared.
    """

    answer: Answer
    reasons: tuple[str, ...]
    rows: Rows | None = None

    def __str__(self) -> str:
        return f"{self.answer} ({'; '.join(self.reasons)})"


def comparison_of(trial: TrialResult) -> Comparison | None:
    """A 4-bit trial against its baseline: on the test rows where it was evaluated there, else on validation rows."""
    return (trial.test_evaluation.comparison if trial.test_evaluation else None) or trial.similarity


def verdict_of(trial: TrialResult, min_similarity: float) -> Verdict | None:
    """The verdict on a 4-bit trial; None for a 16-bit one, which is its own baseline."""
    if trial.config.precision == "16bit":
        return None
    comparison = comparison_of(trial)
    on_report = trial.test_evaluation is not None and trial.test_evaluation.comparison is not None
    rows: Rows | None = "test" if on_report else "validation" if comparison else None
    if trial.failed_evaluations:
        reasons = tuple(f"{EVALUATIONS[what]}: {why}" for what, why in trial.failed_evaluations.items())
        return Verdict(answer="evaluation failed", reasons=reasons, rows=rows)
    if comparison is None:
        return Verdict(answer="undecided", reasons=("not compared with a 16-bit baseline",))
    answer, reasons = evaluated(comparison, min_similarity)
    return Verdict(answer=answer, reasons=reasons, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEvaluation:
    """A comparison or test evaluation that failed; the trial itself stays completed."""

    what: Evaluation
    trial: int
    reason: str

    def __str__(self) -> str:
        return f"trial {self.trial} could not be evaluated: {EVALUATIONS[self.what]} failed ({self.reason})"


def failed_evaluations(trials: Sequence[TrialResult], settings: SweepSettings) -> tuple[FailedEvaluation, ...]:
    """What a sweep's result lacks: test evaluations of finalists and their repeats, and comparisons of trials that may
    be missing from the front for want of them."""
    evaluated = set(map(attrgetter("key"), to_evaluate(trials, settings)))
    failed = []
    for trial in trials:
        for what, why in trial.failed_evaluations.items():
            if trial.key in evaluated or (what == "compare" and is_candidate(trial)):
                failed.append(FailedEvaluation(what=what, trial=trial.number, reason=why))
    return tuple(failed)


def evaluated(comparison: Comparison, min_similarity: float) -> tuple[Answer, tuple[str, ...]]:
    """Two conditions, both needed for "preserved".

    1. The lower end of embedding_cosine's 95 % interval is at least `min_similarity`. Alone it passes
       almost anything on GPT-2, whose pooled states are nearly parallel.
    2. KL(baseline || 4 bits) is at most KL(baseline || another seed's baseline), the mean over seeds: 4 bits move the
       model no further than chance does. Values are compared, not their intervals, which share their rows.

    Without other seeds the second is open: "undecided", unless the first fails already.
    """
    cosine = comparison.quantized.embedding_cosine
    kl_nats = comparison.quantized.kl_nats.value
    too_far = cosine.low < min_similarity
    reasons = [f"cosine is at least {cosine.low:.4f}, {'under' if too_far else 'asked for'} {min_similarity:g}"]
    if not comparison.replicates:
        if too_far:
            return "not preserved", tuple(reasons)
        return "undecided", (*reasons, "no other seed of its baseline to hold the KL against")
    seed_nats = sum(s.kl_nats.value for s in comparison.replicates) / len(comparison.replicates)
    beyond = kl_nats > seed_nats
    reasons.append(f"KL {kl_nats:.4f} nats is {'over' if beyond else 'at most'} another seed's {seed_nats:.4f}")
    if too_far or beyond:
        return "not preserved", tuple(r for r, failed in zip(reasons, (too_far, beyond), strict=True) if failed)
    return "preserved", tuple(reasons)


def figures_of(trial: TrialResult) -> dict[str, float]:
    """What its comparisons came to, one number a name; those on the test rows are called test_..."""
    values = dict(flat(trial.similarity)) if trial.similarity else {}
    if trial.test_evaluation:
        values["test_eval_loss_nats"] = trial.test_evaluation.eval_loss_nats
        values["test_untuned_loss_nats"] = trial.test_evaluation.untuned_loss_nats
        if trial.test_evaluation.comparison:
            values |= {f"test_{name}": value for name, value in flat(trial.test_evaluation.comparison).items()}
    return values
