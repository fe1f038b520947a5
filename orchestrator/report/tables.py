"""The tables of a report, each a function from its part of the report to Markdown."""

from collections.abc import Sequence
from statistics import mean

from orchestrator.analysis.costs import CostCell, CostTable, Saving
from orchestrator.analysis.repeats import Figure
from orchestrator.analysis.sufficient_rank import SufficientRank
from orchestrator.objectives import OBJECTIVES
from orchestrator.report.budget import WithinMemory
from orchestrator.report.content import Breakdown, Finalist, Outcome
from orchestrator.report.markdown import safe, table
from trainables.models.families import all_targets
from trainables.values.config import BITS, TrialConfig
from trainables.values.findings import Comparison, Estimate
from trainables.values.results import PARTS, MemoryBreakdown

METRICS = {
    "token_match_rate": "token match rate",
    "embedding_cosine": "embedding cosine",
    "centered_cosine": "centred cosine",
    "recovered_cosine": "recovered cosine",
    "top1_agreement": "top-1 agreement",
    "kl_nats": "KL (nats)",
}
NONE = "-"


def targets(config: TrialConfig) -> str:
    return "all" if all_targets(config.targets) else " ".join(config.targets)


def interval(estimate: Estimate, form: str = ".4f") -> str:
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def figure(found: Figure | None, objective: str) -> str:
    """With its interval, or with the remark that it is of one seed."""
    if found is None:
        return NONE
    shown = OBJECTIVES[objective].shown
    value = shown(found.value)
    if found.low is not None:
        value += f" ({shown(found.low)} to {shown(found.high)})"
    return value + (", one seed" if found.n_seeds == 1 else f", {found.n_seeds} seeds" if found.n_seeds else "")


def of_finalists(finalists: Sequence[Finalist]) -> str:
    objectives = list(dict.fromkeys(o for finalist in finalists for o in finalist.figures))
    measured = [OBJECTIVES[name].heading for name in objectives]
    headings = ["trial", "front", "base", "targets", "rank", "alpha", "lr", *measured, "rows"]
    return table(headings, [_finalist_row(finalist, objectives) for finalist in finalists], n_words=4)


def _finalist_row(finalist: Finalist, objectives: Sequence[str]) -> list[str]:
    config = finalist.config
    return [
        str(finalist.number),
        "yes" if finalist.on_front else "no",
        BITS[config.precision],
        targets(config),
        str(config.rank),
        f"{config.alpha:g}",
        f"{config.learning_rate:.1e}",
        *(figure(finalist.figures.get(objective), objective) for objective in objectives),
        finalist.rows,
    ]


def of_budgets(found: Sequence[WithinMemory]) -> str:
    """One line a step: what to take where memory is at least so much."""
    headings = ["budget from (MiB)", "base", "rank", "targets", "loss (nats)", "ms/step", "trial"]
    rows = [
        [
            OBJECTIVES["peak_memory_mib"].shown(step.peak_memory_mib),
            BITS[step.config.precision],
            str(step.config.rank),
            targets(step.config),
            OBJECTIVES["eval_loss_nats"].shown(step.eval_loss_nats),
            OBJECTIVES["seconds_per_step"].shown(step.seconds_per_step),
            str(step.number),
        ]
        for step in found
    ]
    return table(headings, rows)


def of_verdicts(finalists: Sequence[Finalist]) -> str:
    """4-bit finalists only."""
    rows = []
    for finalist in finalists:
        if finalist.verdict is None:
            continue
        ratio = finalist.comparison.quantization_to_seed_ratio if finalist.comparison else None
        rows.append(
            [
                str(finalist.number),
                str(finalist.config.rank),
                finalist.verdict.answer,
                interval(ratio, ".3f") if ratio else NONE,
                finalist.verdict.rows or NONE,
                safe("; ".join(finalist.verdict.reasons)),
            ]
        )
    return table(["trial", "rank", "verdict", "quantization_to_seed_ratio", "rows", "because"], rows, n_words=6)


def of_similarity(comparison: Comparison) -> str:
    """Every metric of one 4-bit trial, always beside its references."""
    n_seeds = len(comparison.replicates)
    rows = []
    for name, heading in METRICS.items():
        seeds = [getattr(similarity, name).value for similarity in comparison.replicates]
        cells = [heading, interval(getattr(comparison.quantized, name)), f"{mean(seeds):.4f}" if seeds else NONE]
        rows.append([*cells, f"{getattr(comparison.untuned, name).value:.4f}"])
    return table(["metric", "4 bits", f"another seed (mean of {n_seeds})", "untuned base"], rows)


def of_savings(savings: Sequence[Saving]) -> str:
    headings = ["loop", "rank", "pairs", "saved (MiB)", "saved (%)", "time at 4 bits / at 16"]
    return table(
        headings,
        [
            [
                saving.loop,
                "all" if saving.rank is None else str(saving.rank),
                str(saving.n_pairs),
                f"{saving.saved_mib:.1f}",
                f"{100 * saving.saved_share:.1f}",
                f"{saving.time_ratio:.2f}",
            ]
            for saving in savings
        ],
    )


def of_costs(costs: CostTable) -> str:
    """Precision x loop side by side, and what the bytes at each peak are."""
    assert list(PARTS) == list(MemoryBreakdown.__dataclass_fields__)
    headings = ["", *(f"{BITS[cell.precision]}, {cell.loop}" for cell in costs.cells)]
    rows = {
        "peak (MiB)": [_peak(cell) for cell in costs.cells],
        "ms a step (p10 to p90)": [_milliseconds(cell) for cell in costs.cells],
    }
    rows |= {f"{what} (MiB)": [_part(cell, part) for cell in costs.cells] for part, what in PARTS.items()}
    return table(headings, [[what, *cells] for what, cells in rows.items()])


def _peak(cell: CostCell) -> str:
    if cell.cost:
        return f"{cell.cost.peak_memory_mib:.1f}"
    return "not measured" + (f" (predicted: {cell.predicted_peak_mib:.0f})" if cell.predicted_peak_mib else "")


def _milliseconds(cell: CostCell) -> str:
    cost = cell.cost
    if cost is None:
        return "not measured"
    seconds = (cost.seconds_per_step, cost.seconds_per_step_p10, cost.seconds_per_step_p90)
    return "{:.1f} ({:.1f} to {:.1f})".format(*(1e3 * s for s in seconds))


def _part(cell: CostCell, part: str) -> str:
    parts = cell.cost.breakdown if cell.cost else None
    return f"{getattr(parts, part):.1f}" if parts else NONE


def of_ranks(found: SufficientRank) -> str:
    headings = [
        "rank",
        "verdict",
        "seeds",
        "loss (nats)",
        "against rank",
        "loses (nats, one-sided 95 % bounds)",
        "margin",
    ]
    rows = []
    for row in found.ranks:
        bounds = margin = NONE
        if row.margin_nats is not None:
            bounds, margin = f"{row.lower_nats:.4f} to {row.upper_nats:.4f}", f"{row.margin_nats:.4f}"
        cells = [str(row.rank), row.verdict, str(row.n_seeds), f"{row.loss_nats:.4f}"]
        rows.append([*cells, NONE if row.against is None else str(row.against), bounds, margin])
    return table(headings, rows, n_words=2)


def of_breakdown(breakdown: Breakdown) -> str:
    rows = [
        [safe(share.by), safe(share.group), interval(share.kl_nats), str(share.n_tokens), str(share.n_rows)]
        for share in breakdown.shares
    ]
    return table(["by", "group", "KL (nats)", "tokens", "rows"], rows, n_words=2)


def of_bias(breakdown: Breakdown) -> str:
    rows = [
        [safe(s.about), f"{s.gap_16bit.value:.4f}", f"{s.gap_nf4.value:.4f}", interval(s.change), str(s.n_prompts)]
        for s in breakdown.bias
    ]
    return table(["about", "gap at 16 bits", "gap at 4 bits", "change", "prompts"], rows)


def of_outcomes(outcomes: Sequence[Outcome]) -> str:
    rows = [[outcome.state, str(outcome.n_trials), safe(outcome.reason)] for outcome in outcomes]
    return table(["state", "trials", "why (of the first; the others differ in figures only)"], rows, n_words=3)
