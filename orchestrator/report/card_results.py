"""What a model card says was measured: a line a question, and the same figures as the hub's metadata wants them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from huggingface_hub import EvalResult

from orchestrator.analysis.verdict import Verdict
from orchestrator.report import tables
from orchestrator.report.answer import PRESERVE, WHOSE, WHOSE_COST, headlines, whose
from orchestrator.report.content import Breakdown, Report
from orchestrator.report.markdown import safe
from orchestrator.security.folder_access import refuse_shared
from trainables.values.config import BITS, Loop, Workload
from trainables.values.findings import Comparison, TestEvaluation

NOT_MEASURED = "not measured"
MADE_UP = {"dataset_type": "synthetic", "dataset_name": "full synthetic batch, every token supervised"}
"""What memory and time are measured on."""
Layers = Mapping[str, Any]
"""A recorded sensitivity run, as orchestrator.sensitivity.run writes it."""


def layers_of(root: Path, workload: Workload | None) -> Layers | None:
    """The newest sensitivity run over the same base and rows, if there is one.

    Raises:
        ConfigError: others may have written it.
    """
    same = ("base_fingerprint", "data_digest")
    paths = sorted((root / "sensitivity").glob("*/sensitivity.json"), key=lambda p: (p.stat().st_mtime, p.parent.name))
    for path in reversed(paths if workload else []):
        refuse_shared(path.parent, root, field="sensitivity")
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found["workload"][name] == getattr(workload, name) for name in same):
            return found
    return None


def lines(report: Report, layers: Layers | None) -> list[tuple[str, str]]:
    """Question and answer; every answer with a figure says whose it is where it is not a pretrained model's."""
    said = headlines(report)
    found = [
        (f"How much memory does QLoRA save, {loop} loop?", said.get(f"Memory, {loop} loop", NOT_MEASURED))
        for loop in get_args(Loop)
    ]
    best, threshold = _best(report), f"{report.settings.min_similarity:g}"
    found.append((f"Is similarity to the 16-bit baseline at least {threshold}?", like(report, best)))
    found += likenesses(report, best)
    ratio = "`quantization_to_seed_ratio`"
    found.append((ratio, said.get(ratio, NOT_MEASURED)))
    found.append((PRESERVE, said[PRESERVE] if report.best_4bit is not None else NOT_MEASURED))
    found += [
        (f"Which rank is best (smallest sufficient), {BITS[precision]}?", said[_rank(BITS[precision])])
        for precision in report.sufficient_ranks
    ]
    found.append(("Which rank is best within a memory budget (lowest validation loss)?", _budgets(report)))
    found += [(what, said[what]) for what in said if what.startswith(("Best", "Least memory"))]
    found += _steps(report)
    found.append(("Where does quantization show, by layer?", _layers(layers)))
    found.append(
        ("Where does quantization show, by token and task?", breakdown_line(report, report.breakdown, report.best_4bit))
    )
    return found


def _budgets(report: Report) -> str:
    steps = [
        f"from {step.peak_memory_mib:.1f} MiB rank {step.config.rank} at {BITS[step.config.precision]} on "
        f"{tables.targets(step.config)} ({step.eval_loss_nats:.4f} nats, trial {step.number})"
        for step in report.within_memory
    ]
    return f"{'; '.join(steps)}{whose(report, WHOSE)}." if steps else NOT_MEASURED


def _rank(bits: str) -> str:
    return f"Smallest sufficient rank, {bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A 4-bit trial that likeness is told of."""

    number: int
    rank: int
    verdict: Verdict
    comparison: Comparison


def _best(report: Report) -> Compared | None:
    """The 4-bit finalist that the sweep's likeness is told of."""
    best = report.finalist(report.best_4bit)
    if best is None or best.verdict is None or best.comparison is None:
        return None
    return Compared(number=best.number, rank=best.config.rank, verdict=best.verdict, comparison=best.comparison)


def _beside(comparison: Comparison, name: str) -> str:
    """A metric with its interval, beside its references."""
    seeds = [getattr(similarity, name).value for similarity in comparison.replicates]
    other = f"another seed {mean(seeds):.4f} (mean of {len(seeds)})" if seeds else f"another seed {NOT_MEASURED}"
    untuned = getattr(comparison.untuned, name).value
    return f"{tables.interval(getattr(comparison.quantized, name))}; {other}, untuned base {untuned:.4f}"


def like(report: Report, found: Compared | None) -> str:
    """Whether the cosine keeps the sweep's threshold, and the verdict."""
    if found is None:
        return NOT_MEASURED
    like = found.comparison.quantized
    enough = "yes" if like.embedding_cosine.low >= report.settings.min_similarity else "no"
    return (
        f"{enough}: embedding cosine {_beside(found.comparison, 'embedding_cosine')}, on {like.n_decoded_rows} "
        f"{found.verdict.rows} rows (trial {found.number}, rank {found.rank}); with the KL taken in: "
        f"{safe(str(found.verdict))}{whose(report, WHOSE)}."
    )


def likenesses(report: Report, found: Compared | None) -> list[tuple[str, str]]:
    """A line for each of the other metrics."""
    return [
        (
            f"Similarity to the 16-bit baseline: {heading}",
            f"{_beside(found.comparison, name)} (trial {found.number}){whose(report, WHOSE)}."
            if found
            else NOT_MEASURED,
        )
        for name, heading in tables.METRICS.items()
        if name != "embedding_cosine"
    ]


def _steps(report: Report) -> list[tuple[str, str]]:
    """Of the four cells of one config: seconds a step (p10 to p90), and the peak."""
    if report.costs is None:
        return [("Seconds a step", NOT_MEASURED)]
    c = report.costs.config
    found = []
    for cell in report.costs.cells:
        cost, said = cell.cost, NOT_MEASURED
        if cost:
            said = (
                f"{cost.seconds_per_step:.4f} ({cost.seconds_per_step_p10:.4f} to {cost.seconds_per_step_p90:.4f}), "
                f"peak {cost.peak_memory_mib:.1f} MiB, rank {c.rank}, {c.batch_size} x {c.max_length_tokens} tokens, "
                f"{c.engine} engine, {safe(cost.device)}{whose(report, WHOSE_COST)}."
            )
        found.append((f"Seconds a step, {BITS[cell.precision]}, {cell.loop} loop", said))
    return found


def _layers(layers: Layers | None) -> str:
    if layers is None:
        return NOT_MEASURED
    most = {
        scope: max((v for v in layers["variants"] if v["scope"] == scope), key=lambda v: (v["kl_nats"], v["label"]))
        for scope in ("block", "kind", "all")
    }
    parts = [f"{safe(most[scope]['label'])} (KL {most[scope]['kl_nats']:.6f} nats)" for scope in ("block", "kind")]
    every = most["all"]
    return (
        f"alone at 4 bits, without training, most in {parts[0]} and in {parts[1]}; everything at 4 bits: KL "
        f"{every['kl_nats']:.6f}, loss {every['loss_nats']:+.5f} nats (run {safe(layers['name'])}, "
        f"{layers['n_rows']} rows, {safe(layers['environment']['device'])}){WHOSE[layers['workload']['weights']]}."
    )


def breakdown_line(report: Report, found: Breakdown | TestEvaluation | None, number: int | None) -> str:
    """Where 4 bits move the trial of that number most, in one line.

    Args:
        found: its test_evaluation, or what a report keeps of that.
    """
    shares = (found.shares if isinstance(found, Breakdown) else found.breakdown) if found else ()
    groups = {by: [share for share in shares if share.by == by] for by in dict.fromkeys(share.by for share in shares)}
    most = [max(group, key=lambda share: share.kl_nats.value) for group in groups.values()]
    if not most:
        return NOT_MEASURED
    parts = [f"{safe(share.by)}: {safe(share.group)} ({tables.interval(share.kl_nats)})" for share in most]
    return f"highest KL in nats by {'; '.join(parts)} (trial {number}){whose(report, WHOSE)}."


def bias(report: Report, found: Breakdown | TestEvaluation | None, number: int | None) -> str:
    """Whether 4 bits move how the trial of that number tells groups of people apart, in one line.

    Args:
        found: see `breakdown_line`.
    """
    shifts = found.bias if found else ()
    if not shifts:
        return f"{NOT_MEASURED}."
    parts = [
        f"{safe(s.about)} {s.gap_16bit.value:.4f} at 16 bits, {s.gap_nf4.value:.4f} at 4 bits "
        f"(change {tables.interval(s.change)})"
        for s in shifts
    ]
    return f"gap between groups, 0 to 1: {'; '.join(parts)}, trial {number}{whose(report, WHOSE)}."


def eval_results(report: Report, data: Mapping[str, str]) -> list[EvalResult]:
    """The same figures as metadata; those that were not measured are left out.

    Args:
        data: dataset_type and dataset_name of the rows.
    """
    found = [
        result(f"memory_saved_percent_{s.loop}", f"Peak memory saved by 4 bits, {s.loop} loop (%)", 100 * s.saved_share)
        | MADE_UP
        for s in report.savings
        if s.rank is None
    ]
    for cell in report.costs.cells if report.costs else ():
        where = f"{BITS[cell.precision]}, {cell.loop} loop"
        kind = f"{cell.precision}_{cell.loop}"
        if cell.cost:
            found.append(
                result(f"seconds_per_step_{kind}", f"Seconds a step, {where}", cell.cost.seconds_per_step) | MADE_UP
            )
    costs = len(found)
    if best := report.finalist(report.best_loss):
        loss = best.figures["eval_loss_nats"].value
        heading = "Loss of the trial with the lowest validation loss (nats)"
        found.append(result("eval_loss_nats", heading, loss) | {"dataset_split": best.rows} | data)
    found += of_likeness(_best(report), data)
    said = [whose(report, WHOSE_COST)] * costs + [whose(report, WHOSE)] * (len(found) - costs)
    return with_whose(found, said)


def of_likeness(found: Compared | None, data: Mapping[str, str]) -> list[dict[str, Any]]:
    """A 4-bit trial against its baseline, as metadata."""
    if found is None:
        return []
    rows = {"dataset_split": found.verdict.rows or "validation", **data}
    results = [
        result(name, f"4 bits against 16: {heading}", getattr(found.comparison.quantized, name).value) | rows
        for name, heading in tables.METRICS.items()
    ]
    if ratio := found.comparison.quantization_to_seed_ratio:
        name = "quantization_to_seed_ratio"
        results.append(result(name, "Effect of 4 bits over that of another seed", ratio.value) | rows)
    return results


def with_whose(found: Sequence[dict[str, Any]], said: Sequence[str]) -> list[EvalResult]:
    """Results for the hub, each with whose weights it is of in its name."""
    return [
        EvalResult(task_type="text-generation", **values | {"metric_name": values["metric_name"] + of})
        for values, of in zip(found, said, strict=True)
    ]


def result(name: str, heading: str, value: float) -> dict[str, Any]:
    """One metric."""
    return {"metric_type": name, "metric_name": heading, "metric_value": float(f"{value:.6g}")}
