"""What 4 bits cost: kept, lost or undecided by non-inferiority in loss on test rows, and behaviour beside it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from orchestrator.analysis.costs import Predict
from orchestrator.analysis.finalists import paired_runs, to_evaluate
from orchestrator.analysis.front import is_candidate
from orchestrator.analysis.lost_share import LostShare, PairedLosses, lost_share
from orchestrator.analysis.repeats import Rows
from orchestrator.settings import SweepSettings
from trainables.values.findings import MIN_GROUPS, Comparison, Similarity, flat
from trainables.values.results import Evaluation, TrialResult

Answer = Literal["kept", "lost", "undecided", "no verdict", "not measurable here", "evaluation failed"]
EVALUATIONS: Mapping[Evaluation, str] = {
    "compare": "comparing it with its 16-bit baseline",
    "evaluate": "evaluating it on the test rows",
}
COSINE = 0.95
"""The model card's question where no similarity is asked for: is the cosine to the 16-bit baseline at least this?"""
NO_LOSSES = "the sweep is of protocol 1, which kept no losses of the 16-bit baseline on the test rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An answer with the figures it rests on.

    Attributes:
        answer: non-inferiority in loss; "no verdict" where it cannot be told, "evaluation failed" where what it would
            rest on could not be had, "not measurable here" where the 16-bit baseline does not fit the device.
        sentence: the answer in words, the same wherever it is shown.
        lost: None where the losses of a pair are missing.
        behaviour: how far 4 bits move the outputs, in words; it decides nothing. None without a comparison.
        by_pairs: `lost` of the first pair alone, of the first two, and so on; the last is of all.
        margin: share of the gain that may be lost.
    """

    answer: Answer
    sentence: str
    lost: LostShare | None = None
    behaviour: str | None = None
    by_pairs: tuple[LostShare, ...] = ()
    margin: float = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether 4 bits lose more than the margin of what tuning gained."""
        return self.answer == "lost"

    def __str__(self) -> str:
        return self.sentence


def comparison_of(trial: TrialResult) -> Comparison | None:
    """A 4-bit trial against its baseline: on the test rows where it was evaluated there, else on validation rows."""
    return (trial.test_evaluation.comparison if trial.test_evaluation else None) or trial.similarity


def compared_on(trial: TrialResult) -> Rows:
    """The rows of `comparison_of`."""
    return "test" if trial.test_evaluation and trial.test_evaluation.comparison else "validation"


def cosine_asked(settings: SweepSettings) -> float:
    """What the cosine to the 16-bit baseline is held against in words."""
    return COSINE if settings.min_similarity is None else settings.min_similarity


def verdicts(trials: Sequence[TrialResult], settings: SweepSettings, predict: Predict) -> dict[str, Verdict]:
    """By key: of each completed 4-bit trial of the search that was evaluated, or could not be.

    Args:
        predict: peak memory of a config in MiB, None where it is not known.
    """
    by_config = {trial.config: trial for trial in trials}
    said = {}
    for trial in filter(is_candidate, trials):
        if trial.config.precision == "nf4":
            verdict = _verdict(trial, trials, by_config.get(trial.config.at_other_precision), settings, predict)
            if verdict is not None:
                said[trial.key] = verdict
    return said


def _verdict(
    trial: TrialResult,
    trials: Sequence[TrialResult],
    baseline: TrialResult | None,
    settings: SweepSettings,
    predict: Predict,
) -> Verdict | None:
    comparison = comparison_of(trial)
    behaviour = behaviour_of(comparison, cosine_asked(settings)) if comparison else None
    if trial.failed_evaluations:
        reasons = "; ".join(f"{EVALUATIONS[what]}: {why}" for what, why in trial.failed_evaluations.items())
        return Verdict(answer="evaluation failed", sentence=f"evaluation failed ({reasons})")
    if trial.test_evaluation and trial.test_evaluation.baseline_row_nats:
        by_pairs = _by_pairs(trial, trials)
        lost = by_pairs[-1]
        answer: Answer = lost.answer(settings.verdict_margin) or "no verdict"
        found = {"lost": lost, "by_pairs": by_pairs, "margin": settings.verdict_margin}
        sentence = sentence_of(lost, settings.verdict_margin)
        return Verdict(answer=answer, sentence=sentence, behaviour=behaviour, **found)
    if trial.test_evaluation and trial.test_evaluation.comparison:
        return Verdict(answer="no verdict", sentence=f"no verdict: {NO_LOSSES}", behaviour=behaviour)
    return _without_baseline(baseline, predict) if baseline else None


def _without_baseline(baseline: TrialResult, predict: Predict) -> Verdict | None:
    """Of a trial whose baseline ended without an adapter; None where that is still to come."""
    if baseline.state in ("refused", "oom"):
        needs_mib = predict(baseline.config)
        needs = f"{needs_mib / 1024:.1f} GiB" if needs_mib else "more memory than there is"
        sentence = f"not measurable here: the 16-bit baseline needs {needs}"
        return Verdict(answer="not measurable here", sentence=sentence)
    if baseline.state in ("diverged", "failed"):
        sentence = f"no verdict: the 16-bit baseline ended as {baseline.state} ({baseline.reason})"
        return Verdict(answer="no verdict", sentence=sentence)
    return None


def _by_pairs(trial: TrialResult, trials: Sequence[TrialResult]) -> tuple[LostShare, ...]:
    """Over the trial and its runs under other seeds that were evaluated on the same rows beside their baselines: one
    pair after the other."""
    own, pairs = trial.test_evaluation, []
    for run in paired_runs(trial, trials):
        found = run.test_evaluation
        if found and found.baseline_row_nats and found.row_tokens == own.row_tokens:
            pairs.append(
                PairedLosses(
                    quantized=found.row_nats,
                    baseline=found.baseline_row_nats,
                    untuned=found.baseline_untuned_row_nats,
                    quantized_untuned=found.untuned_row_nats,
                )
            )
    rows = {"row_tokens": own.row_tokens, "row_groups": own.row_groups}
    return tuple(lost_share(pairs[:n], **rows) for n in range(1, len(pairs) + 1))


def seeds(n_pairs: int) -> str:
    """What a verdict rests on."""
    return "one seed" if n_pairs == 1 else f"{n_pairs} seeds"


def _range(lost: LostShare) -> str:
    """What the seeds come to, each alone."""
    if lost.over_seeds is None:
        return ""
    least, largest = lost.over_seeds
    return f" from {100 * least:.1f} to {100 * largest:.1f} %"


def sentence_of(lost: LostShare, margin: float) -> str:
    """A verdict in words: the one place that makes them."""
    answer = lost.answer(margin)
    if lost.share is None:
        return f"no verdict: {lost.withheld}; {seeds(lost.n_pairs)}"
    share = f"4 bits lose {100 * lost.share:.1f} %"
    if answer:
        share += f" ({100 * lost.low:.1f} to {100 * lost.high:.1f})"
    share += " of what tuning gained"
    basis = f"margin {100 * margin:g} %, {seeds(lost.n_pairs)}{_range(lost)}, {lost.n_groups} groups of test rows"
    said = f"{answer}: {share} ({basis})" if answer else f"no verdict: {lost.withheld}; {share} ({seeds(lost.n_pairs)})"
    said += f"; rounding alone costs the untuned base {100 * lost.rounding_share:.1f} % of the gain"
    if lost.won_back_share is not None:
        won_back = f"{100 * lost.won_back_share:.0f} %" if lost.won_back_share > 0 else "none"
        said += f"; tuning won back {won_back} of that"
    return said


def short(verdict: Verdict) -> str:
    """The sentence without what it rests on, and without rounding alone."""
    return verdict.sentence.partition(" (margin ")[0].partition("; rounding ")[0]


def behaviour_of(comparison: Comparison, cosine: float) -> str:
    """How far 4 bits move a model's outputs from its baseline's, beside what another seed does.

    KL(baseline || 4 bits) is held against half the lowest of the seed replicates and twice the highest.

    Args:
        cosine: the model card's question is whether the lower end of the cosine's interval is at least this.
    """
    kl_nats = comparison.quantized.kl_nats.value
    replicates = sorted(similarity.kl_nats.value for similarity in comparison.replicates)
    if not replicates:
        text = f"4 bits move texts by a KL of {kl_nats:.4f} nats, with no other seed to hold it against"
    else:
        least, most = replicates[0], replicates[-1]
        beyond = "less than half" if 2 * kl_nats < least else "more than twice" if kl_nats > 2 * most else None
        moved = f"{beyond or 'half to twice'} as much as"
        others = f"{len(replicates)} other seeds {least:.4f} to {most:.4f}"
        beside = others if len(replicates) > 1 else f"another seed {least:.4f}"
        text = f"4 bits move texts {moved} another seed (KL {kl_nats:.4f} nats; of {beside})"
    return f"{text}; cosine at least {cosine:g}: {cosine_kept(comparison.quantized, cosine)}"


def cosine_kept(quantized: Similarity, cosine: float) -> str:
    """Whether the lower end of a cosine's interval is at least so much, in words."""
    found = quantized.embedding_cosine
    if found.low is None:
        few = f"{quantized.n_decoded_groups} groups of equal instruction are too few for an interval"
        return f"not known ({found.value:.4f}; {few}, which takes {MIN_GROUPS})"
    return f"{'yes' if found.low >= cosine else 'no'} ({found.value:.4f}, lower end {found.low:.4f})"


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


ANSWER_CODES: Mapping[str, float] = {"kept": 1.0, "undecided": 0.0, "lost": -1.0}
"""What MLflow, which keeps numbers, has for an answer."""


def shares_by_pairs(verdict: Verdict) -> Iterator[tuple[int, dict[str, float]]]:
    """A verdict as plain numbers by name, once for each number of pairs that it could rest on."""
    for lost in verdict.by_pairs:
        shares = {"lost_share": lost.share, "lost_share_low": lost.low, "lost_share_high": lost.high}
        answer = lost.answer(verdict.margin)
        shares |= {"rounding_share": lost.rounding_share, "verdict": ANSWER_CODES[answer] if answer else None}
        yield lost.n_pairs, {name: value for name, value in shares.items() if value is not None}


def figures_of(trial: TrialResult) -> dict[str, float]:
    """What its comparisons came to, one number a name; those on the test rows are called test_..."""
    values = dict(flat(trial.similarity)) if trial.similarity else {}
    if trial.test_evaluation:
        values["test_eval_loss_nats"] = trial.test_evaluation.eval_loss_nats
        values["test_untuned_loss_nats"] = trial.test_evaluation.untuned_loss_nats
        if trial.test_evaluation.comparison:
            values |= {f"test_{name}": value for name, value in flat(trial.test_evaluation.comparison).items()}
    return values
