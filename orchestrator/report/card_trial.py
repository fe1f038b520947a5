"""What the card of one trial says: its own settings and figures, and nobody else's."""

from collections.abc import Mapping

from huggingface_hub import EvalResult

from orchestrator.analysis.verdict import comparison_of, verdict_of
from orchestrator.report import card_results as results
from orchestrator.report import tables
from orchestrator.report.answer import PRESERVE, WHOSE, WHOSE_COST, whose
from orchestrator.report.card_results import MADE_UP, NOT_MEASURED, Compared
from orchestrator.report.content import Report
from orchestrator.report.markdown import duration, safe, table
from trainables.values.config import Precision
from trainables.values.results import TrialResult

METHODS: Mapping[Precision, str] = {"nf4": "QLoRA", "16bit": "LoRA"}
HOW: Mapping[Precision, str] = {
    "nf4": "QLoRA: frozen base in NF4, block size 64, double quantization; LoRA adapter in float32",
    "16bit": "LoRA: frozen base at 16 bits, not quantized; LoRA adapter in float32",
}
TAGS: Mapping[Precision, tuple[str, ...]] = {"nf4": ("lora", "qlora", "nf4"), "16bit": ("lora",)}


def device(trial: TrialResult) -> str:
    """That it was measured on."""
    return safe(trial.environment.get("device") or (trial.cost.device if trial.cost else NOT_MEASURED))


def standing(report: Report, trial: TrialResult) -> str:
    """What a reader of its figures must know."""
    return f"Of trial {trial.number} of sweep `{report.name}`. Intervals are 95 % over rows, given the seed."


def place(report: Report, trial: TrialResult) -> str:
    """How it stands among the sweep's other trials."""
    on = any(finalist.key == trial.key and finalist.on_front for finalist in report.finalists)
    return "on its Pareto front" if on else "not on its Pareto front"


def lines(report: Report, trial: TrialResult) -> list[tuple[str, str]]:
    """Question and answer; every answer with a figure says whose it is where it is not a pretrained model's."""
    found = [
        ("Validation loss, on the validation rows", _validation(report, trial)),
        ("Loss on the test rows", _test_rows(report, trial)),
        ("Peak memory and seconds a step", _cost(report, trial)),
    ]
    if trial.config.precision == "16bit":
        return [*found, (PRESERVE, "does not apply: this adapter was trained over the base at 16 bits.")]
    likeness, verdict = _compared(report, trial), verdict_of(trial, report.settings.min_similarity)
    threshold = f"{report.settings.min_similarity:g}"
    found.append((f"Is similarity to its 16-bit baseline at least {threshold}?", results.like(report, likeness)))
    found.append((PRESERVE, f"{safe(str(verdict))}{whose(report, WHOSE)}."))
    found += results.likenesses(report, likeness)
    ratio = likeness.comparison.quantization_to_seed_ratio if likeness else None
    said = f"{tables.interval(ratio, '.2f')}{whose(report, WHOSE)}." if ratio else NOT_MEASURED
    found.append(("`quantization_to_seed_ratio`", said))
    breakdown = results.breakdown_line(report, trial.test_evaluation, trial.number)
    return [*found, ("Where does quantization show, by token and task?", breakdown)]


def _compared(report: Report, trial: TrialResult) -> Compared | None:
    comparison, verdict = comparison_of(trial), verdict_of(trial, report.settings.min_similarity)
    if comparison is None or verdict is None:
        return None
    return Compared(number=trial.number, rank=trial.config.rank, verdict=verdict, comparison=comparison)


def _validation(report: Report, trial: TrialResult) -> str:
    if not trial.history:
        return NOT_MEASURED
    last = trial.history[-1]
    return f"{last.eval_loss_nats:.4f} nats after {last.step} steps{whose(report, WHOSE)}."


def _test_rows(report: Report, trial: TrialResult) -> str:
    if trial.test_evaluation is None:
        why = trial.failed_evaluations.get("evaluate")
        return f"{NOT_MEASURED}: evaluating it failed ({safe(why)})." if why else NOT_MEASURED
    own, untuned = trial.test_evaluation.eval_loss_nats, trial.test_evaluation.untuned_loss_nats
    return f"{own:.4f} nats; untuned base {untuned:.4f}{whose(report, WHOSE)}."


def _cost(report: Report, trial: TrialResult) -> str:
    cost, c = trial.cost, trial.config
    if cost is None:
        return NOT_MEASURED
    return (
        f"peak {cost.peak_memory_mib:.1f} MiB; {cost.seconds_per_step:.4f} seconds ({cost.seconds_per_step_p10:.4f} to "
        f"{cost.seconds_per_step_p90:.4f}), {c.batch_size} x {c.max_length_tokens} tokens, {c.loop} loop, {c.engine} "
        f"engine, {safe(cost.device)}{whose(report, WHOSE_COST)}."
    )


def procedure(trial: TrialResult) -> str:
    """Its settings."""
    values = {name: " ".join(v) if isinstance(v, list) else str(v) for name, v in trial.config.to_dict().items()}
    return table(["setting", "value"], [[f"`{name}`", safe(value)] for name, value in values.items()], n_words=2)


def bias(report: Report, trial: TrialResult) -> str:
    """Whether 4 bits move how it tells groups of people apart, in one line."""
    return results.bias(report, trial.test_evaluation, trial.number)


def impact(report: Report, trial: TrialResult) -> str:
    if trial.train_seconds is None:
        return f"Time that this adapter trained: {NOT_MEASURED}."
    return f"This adapter trained for {duration(trial.train_seconds)}{whose(report, WHOSE_COST)}."


def eval_results(report: Report, trial: TrialResult, data: Mapping[str, str]) -> list[EvalResult]:
    """The same figures as metadata; those that were not measured are left out.

    Args:
        data: dataset_type and dataset_name of the rows.
    """
    costs = []
    if cost := trial.cost:
        costs.append(results.result("peak_memory_mib", "Peak memory (MiB)", cost.peak_memory_mib) | MADE_UP)
        costs.append(results.result("seconds_per_step", "Seconds a step", cost.seconds_per_step) | MADE_UP)
    found = []
    if trial.history:
        loss = results.result("eval_loss_nats", "Validation loss (nats)", trial.history[-1].eval_loss_nats)
        found.append(loss | {"dataset_split": "validation"} | data)
    if trial.test_evaluation:
        loss = results.result("eval_loss_nats", "Loss on the test rows (nats)", trial.test_evaluation.eval_loss_nats)
        found.append(loss | {"dataset_split": "test"} | data)
    if trial.config.precision == "nf4":
        found += results.of_likeness(_compared(report, trial), data)
    said = [whose(report, WHOSE_COST)] * len(costs) + [whose(report, WHOSE)] * len(found)
    return results.with_whose([*costs, *found], said)
