"""The answer of a report in words: one line each for memory, likeness, the best configs and ranks."""

from collections.abc import Mapping
from typing import get_args

from orchestrator.analysis.verdict import Answer
from orchestrator.report import tables
from orchestrator.report.content import Finalist, Report
from orchestrator.report.markdown import safe
from trainables.values.config import BITS, Loop, Weights

Headlines = dict[str, str]

WHOSE: Mapping[Weights, str] = {
    "pretrained": "",
    "random": ", with random weights: says nothing about a trained model",
    "stand-in": ", on a stand-in base trained from nothing",
    "demo": ", on the embedded demo model",
}
"""Said in the line of every headline figure of quality."""
LOWEST = "Best (lowest validation loss, that on the validation rows)"
PRESERVE = "Do 4 bits preserve what 16 bits learn?"
WHOSE_COST: Mapping[Weights, str] = WHOSE | {"random": ", with random weights, which cost the same"}


def whose(report: Report, of: Mapping[Weights, str]) -> str:
    return of[report.workload.weights] if report.workload else ""


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def answer(report: Report) -> str:
    space = report.settings.space
    question = "Which LoRA settings, at 4 or at 16 bits, and what does each MiB and second buy?"
    asked = f"Searched: space {safe(space.name)}{f' ({safe(space.description)})' if space.description else ''}."
    return "\n\n".join(["## Question and answer", f"{question} {asked}", bullets(report)])


def bullets(report: Report) -> str:
    """The headlines as a list."""
    return "\n".join(
        f"- **{what}{'' if what == PRESERVE else ':'}** {said}" for what, said in headlines(report).items()
    )


def headlines(report: Report) -> Headlines:
    """What each is about -> what it says, in Markdown."""
    return _saved(report) | _preserved(report) | _best(report) | _sufficient(report)


def _saved(report: Report) -> Headlines:
    """One line a loop: they are never mixed."""
    lines: Headlines = {}
    for loop in get_args(Loop):
        found = [saving for saving in report.savings if saving.loop == loop and saving.rank is None]
        if not found:
            continue
        saving = found[0]
        verb = "save" if saving.saved_mib >= 0 else "cost"
        lines[f"Memory, {loop} loop"] = (
            f"4 bits {verb} {abs(saving.saved_mib):.1f} MiB, "
            f"{100 * abs(saving.saved_share):.1f} % of the peak at 16 bits, and a step takes {saving.time_ratio:.2f} "
            f"times as long (median of {counted(saving.n_pairs, 'pair')} that differ in nothing else)"
            f"{whose(report, WHOSE_COST)}."
        )
    return lines or {"Memory": "not known: no config was measured at both precisions."}


def _preserved(report: Report) -> Headlines:
    evaluated = [finalist for finalist in report.finalists if finalist.verdict]
    if not evaluated:
        return {PRESERVE: "not known: no 4-bit trial was compared with its 16-bit baseline."}
    counts = {answer: sum(f.verdict.answer == answer for f in evaluated if f.verdict) for answer in get_args(Answer)}
    said = ", ".join(f"{answer} in {n}" for answer, n in counts.items() if n)
    failed = [f for f in evaluated if f.verdict and f.verdict.answer == "evaluation failed"]
    why = f" (trial {failed[0].number}: {safe('; '.join(failed[0].verdict.reasons))})" if failed else ""
    line = f"of {counted(len(evaluated), '4-bit finalist')}: {said}{why}{whose(report, WHOSE)}."
    return {PRESERVE: line} | _headline(report)


def _headline(report: Report) -> Headlines:
    best = report.finalist(report.best_4bit)
    ratio = best.comparison.quantization_to_seed_ratio if best and best.comparison else None
    if best is None or ratio is None:
        return {}
    said = (
        f"{tables.interval(ratio, '.2f')}: 4 bits move trial {best.number} {ratio.value:.2f} times as far from its "
        f"16-bit baseline as another seed moves that baseline{whose(report, WHOSE)}."
    )
    return {"`quantization_to_seed_ratio`": said}


def _best(report: Report) -> Headlines:
    lines: Headlines = {}
    chosen = {LOWEST: report.best_loss, "Least memory": report.best_memory}
    for what, number in chosen.items():
        best = report.finalist(number)
        if best:
            lines[what] = f"{_config(best)}: {_figures(best)}{whose(report, WHOSE)}."
    middle = report.finalist(report.knee)
    if middle:
        named = (
            f"trial {middle.number}, see above"
            if middle.number in chosen.values()
            else f"{_config(middle)}: {_figures(middle)}"
        )
        lines["Knee (nearest to the best of each objective)"] = f"{named}{whose(report, WHOSE)}."
    return lines or {"Best config": f"none: the front is empty. {safe(report.nothing_counts or '')}".strip()}


def _config(finalist: Finalist) -> str:
    c = finalist.config
    return (
        f"trial {finalist.number}, {BITS[c.precision]}, rank {c.rank}, alpha {c.alpha:g}, "
        f"learning rate {c.learning_rate:.1e}, targets {tables.targets(c)}"
    )


def _figures(finalist: Finalist) -> str:
    loss = f"loss {tables.figure(finalist.figures.get('eval_loss_nats'), 'eval_loss_nats')} on the {finalist.rows} rows"
    peak, step = (tables.figure(finalist.figures.get(o), o) for o in ("peak_memory_mib", "seconds_per_step"))
    return f"{loss}, {peak} MiB, {step} ms a step"


def _sufficient(report: Report) -> Headlines:
    return {
        f"Smallest sufficient rank, {BITS[precision]}": (
            ("" if found.rank is None else f"{found.rank}: ")
            + found.reason
            + (f"{whose(report, WHOSE)}." if found.ranks else ".")
        )
        for precision, found in report.sufficient_ranks.items()
    }
