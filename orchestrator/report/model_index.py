"""The figures of a model card as the hub's metadata wants them, its model index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from orchestrator.analysis.repeats import Rows
from orchestrator.analysis.verdict import compared_on, comparison_of
from orchestrator.report.render import METRICS
from orchestrator.report.values import Finalist, SweepReport
from trainables.values.config import BITS
from trainables.values.findings import Comparison
from trainables.values.results import TrialResult

MADE_UP = {"dataset_type": "synthetic", "dataset_name": "full synthetic batch, every token supervised"}
"""What memory and time are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A 4-bit trial that likeness is told of."""

    number: int
    rank: int
    rows: Rows
    comparison: Comparison


def compared_best(report: SweepReport) -> Compared | None:
    """The 4-bit finalist that the sweep's likeness is told of."""
    best = report.finalist(report.best_4bit)
    if best is None or best.comparison is None:
        return None
    return Compared(number=best.number, rank=best.config.rank, rows=best.compared_on, comparison=best.comparison)


def compared(trial: TrialResult) -> Compared | None:
    """A trial as its own card tells of it."""
    comparison = comparison_of(trial) if trial.config.precision == "nf4" else None
    if comparison is None:
        return None
    return Compared(number=trial.number, rank=trial.config.rank, rows=compared_on(trial), comparison=comparison)


def of_sweep(report: SweepReport, data: Mapping[str, str]) -> list[EvalResult]:
    """Of a sweep's card; what was not measured is left out.

    Args:
        data: dataset_type and dataset_name of the rows.
    """
    found = []
    for saving in report.savings:
        if saving.rank is None:
            heading = f"Peak memory saved by 4 bits, {saving.loop} loop (%)"
            found.append(_result(f"memory_saved_percent_{saving.loop}", heading, 100 * saving.saved_share) | MADE_UP)
    for cell in report.costs.cells if report.costs else ():
        if cell.cost:
            name = f"seconds_per_step_{cell.precision}_{cell.loop}"
            heading = f"Seconds a step, {BITS[cell.precision]}, {cell.loop} loop"
            found.append(_result(name, heading, cell.cost.seconds_per_step) | MADE_UP)
    costs = len(found)
    if best := report.finalist(report.best_loss):
        loss = best.figures["eval_loss_nats"].value
        heading = "Loss of the cheapest trial with the lowest validation loss, within noise (nats)"
        found.append(_result("eval_loss_nats", heading, loss) | {"dataset_split": best.rows} | data)
    found += _of_lost(report.finalist(report.best_4bit), data) + _of_likeness(compared_best(report), data)
    said = [report.cost_caveat] * costs + [report.caveat] * (len(found) - costs)
    return _with_caveats(found, said)


def of_trial(report: SweepReport, trial: TrialResult, data: Mapping[str, str]) -> list[EvalResult]:
    """Of the card of one trial; see `of_sweep`."""
    costs = []
    if cost := trial.cost:
        costs.append(_result("peak_memory_mib", "Peak memory (MiB)", cost.peak_memory_mib) | MADE_UP)
        costs.append(_result("seconds_per_step", "Seconds a step", cost.seconds_per_step) | MADE_UP)
    found = []
    if trial.history:
        loss = _result("eval_loss_nats", "Validation loss (nats)", trial.history[-1].eval_loss_nats)
        found.append(loss | {"dataset_split": "validation"} | data)
    if trial.test_evaluation:
        loss = _result("eval_loss_nats", "Loss on the test rows (nats)", trial.test_evaluation.eval_loss_nats)
        found.append(loss | {"dataset_split": "test"} | data)
    if trial.config.precision == "nf4":
        found += _of_lost(report.finalist(trial.number), data) + _of_likeness(compared(trial), data)
    said = [report.cost_caveat] * len(costs) + [report.caveat] * len(found)
    return _with_caveats([*costs, *found], said)


def _of_lost(found: Finalist | None, data: Mapping[str, str]) -> list[dict[str, Any]]:
    """What 4 bits lose, as metadata."""
    lost = found.verdict.lost if found and found.verdict else None
    if lost is None or lost.share is None:
        return []
    heading = "Lost by 4 bits, of what tuning gained (%)"
    return [_result("lost_percent", heading, 100 * lost.share) | {"dataset_split": "test"} | data]


def _of_likeness(found: Compared | None, data: Mapping[str, str]) -> list[dict[str, Any]]:
    """A 4-bit trial against its baseline, as metadata."""
    if found is None:
        return []
    rows = {"dataset_split": found.rows, **data}
    results = []
    for name, heading in METRICS.items():
        value = getattr(found.comparison.quantized, name).value
        results.append(_result(name, f"4 bits against 16: {heading}", value) | rows)
    if ratio := found.comparison.quantization_to_seed_ratio:
        name = "quantization_to_seed_ratio"
        results.append(_result(name, "Effect of 4 bits over that of another seed", ratio.value) | rows)
    return results


def _with_caveats(found: Sequence[dict[str, Any]], said: Sequence[str]) -> list[EvalResult]:
    """Results for the hub, each with whose weights it is of in its name."""
    return [
        EvalResult(task_type="text-generation", **values | {"metric_name": values["metric_name"] + of})
        for values, of in zip(found, said, strict=True)
    ]


def _result(name: str, heading: str, value: float) -> dict[str, Any]:
    """One metric."""
    return {"metric_type": name, "metric_name": heading, "metric_value": float(f"{value:.6g}")}
