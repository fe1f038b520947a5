"""A model card from a sweep's ledger: Markdown under a metadata block that the Hugging Face hub reads."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from orchestrator.report import card_results as results
from orchestrator.report import card_trial, tables
from orchestrator.report.answer import WHOSE, WHOSE_COST, counted, whose
from orchestrator.report.card_results import NOT_MEASURED, Layers
from orchestrator.report.card_trial import HOW, METHODS, TAGS
from orchestrator.report.content import Report
from orchestrator.report.markdown import duration, safe, table
from trainables.data import alpaca
from trainables.values.config import BITS, TrialConfig, Workload, canonical_json
from trainables.values.results import TrialResult

TEMPLATE = Path(__file__).with_name("model_card.md")
ALPACA, GPT2_MEDIUM = "tatsu-lab/alpaca", "openai-community/gpt2-medium"
BASES = {GPT2_MEDIUM: "GPT-2 Medium", "demo": "the embedded demo model"}
ROWS = {ALPACA: "Alpaca", "demo": "made-up demo rows"}
SHAPES = {GPT2_MEDIUM: "24 layers, width 1,024, 16 heads, 1,024 positions, vocabulary 50,257"}
HUB_LICENCE = {ALPACA: "cc-by-nc-4.0", "demo": "mit"}
"""Of adapters, by the rows they were trained on; in the hub's words."""
LICENCE = {
    ALPACA: "trained on Alpaca (CC BY-NC 4.0): non-commercial use only",
    "demo": "trained on the embedded demo's rows: MIT",
}
BASE_LICENCE = {GPT2_MEDIUM: "MIT (modified)", "demo": "MIT"}
BESIDE = "compared with LoRA over the same base at 16 bits"
NO_KEY = frozenset(
    {"name", "base_model", "data", "compute_dtype", "address", "tracking_uri", "insecure", "gpus_per_trial"}
)
"""Settings that decide no result, or that the workload says more exactly."""


def card_of(report: Report, layers: Layers | None = None, trial: TrialResult | None = None) -> ModelCard:
    """Make the card.

    Args:
        layers: a sensitivity run over the same base and rows.
        trial: that the card is about, as it goes with its adapter; None for a card of the whole sweep.
    """
    shown = replace(report, workload=_without_paths(report.workload)) if report.workload else report
    settings, measured = shown.settings, shown.measured
    protocol = (
        "another version than this program's" if measured.protocol_version is None else str(measured.protocol_version)
    )
    card = ModelCard.from_template(
        _metadata(report, shown, trial),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        base=_title(BASES, shown.workload.base_model if shown.workload else "a base not known yet"),
        data=_title(ROWS, shown.workload.data if shown.workload else "rows not known yet"),
        threshold=f"{settings.min_similarity:g}",
        sweep=f"`{settings.name}`",
        details=_details(shown, trial, protocol),
        rows=_rows(shown),
        protocol=protocol,
        finalist_seeds=counted(settings.finalist_seeds, "run"),
        licences=f"Here: {_licences(shown.workload)}.",
        **(_of_trial(shown, layers, trial) if trial else _of_sweep(shown, layers)),
    )
    card.text = card.text.rstrip("\n") + "\n"
    return card


def _of_sweep(report: Report, layers: Layers | None) -> dict[str, Any]:
    """What the template says of a whole sweep."""
    return {
        "number": None,
        "method": METHODS["nf4"],
        "procedure": _procedure(report),
        "standing": _standing(report),
        "results": _answers(results.lines(report, layers)),
        "bias": results.bias(report, report.breakdown, report.best_4bit),
        "impact": _impact(report),
    }


def _of_trial(report: Report, layers: Layers | None, trial: TrialResult) -> dict[str, Any]:
    """What it says of one trial, and what of its sweep."""
    return {
        "number": trial.number,
        "bits": BITS[trial.config.precision],
        "method": METHODS[trial.config.precision],
        "procedure": card_trial.procedure(trial),
        "standing": card_trial.standing(report, trial),
        "results": _answers(card_trial.lines(report, trial)),
        "bias": card_trial.bias(report, trial),
        "impact": card_trial.impact(report, trial),
        "place": card_trial.place(report, trial),
        "sweep_standing": _standing(report),
        "sweep_results": _answers(results.lines(report, layers)),
        "sweep_procedure": _procedure(report),
    }


def _answers(lines: Sequence[tuple[str, str]]) -> str:
    return table(["Question", "Answer"], [[what, said] for what, said in lines], n_words=2)


def write(card: ModelCard, path: Path) -> Path:
    """Write a card whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    card.save(scratch)
    os.replace(scratch, path)
    return path


def sweep_key(report: Report) -> str:
    """SHA-256 (hex) of all that decides a sweep's results: what was asked, of which base and rows, how measured.

    What was left at its default is left out, so that a setting added later changes no earlier sweep's key.
    """
    workload = report.workload
    same = ("base_fingerprint", "data_digest", "compute_dtype")
    whole = {
        "settings": report.settings.model_dump(mode="json", exclude=set(NO_KEY), exclude_defaults=True),
        "workload": {name: getattr(workload, name) for name in same} if workload else None,
        "protocol": report.measured.protocol_version,
    }
    return hashlib.sha256(canonical_json(whole).encode()).hexdigest()


def base_on_hub(workload: Workload) -> str | None:
    """The base's id on the hub, None where it lies on this machine only."""
    cached = f"models--{workload.base_model.replace('/', '--')}"  # the hub's libraries name their folders so
    return workload.base_model if cached in Path(workload.base_folder).parts else None


def _data_on_hub(workload: Workload) -> str | None:
    is_file = alpaca.is_path(workload.data)
    return None if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", workload.data, re.ASCII) else workload.data


def _without_paths(workload: Workload) -> Workload:
    """A card travels: of a folder or file of this machine it tells the name only."""
    base, data = workload.base_model, workload.data
    if base_on_hub(workload) is None and base != "demo":
        base = Path(base.removeprefix("random:")).name
    return replace(workload, base_model=base, data=data if _data_on_hub(workload) else Path(data).name)


def _title(titles: Mapping[str, str], source: str) -> str:
    return titles.get(source) or safe(source)


def _metadata(report: Report, shown: Report, trial: TrialResult | None) -> ModelCardData:
    """What the hub reads; ids are named only where the hub knows them."""
    workload = report.workload
    base, data = (base_on_hub(workload), _data_on_hub(workload)) if workload else (None, None)
    rows = {}
    if shown.workload:
        rows = {"dataset_type": data or "local", "dataset_name": shown.workload.data}
    found, name = results.eval_results(shown, rows) if workload else [], report.name
    if trial:
        found, name = card_trial.eval_results(shown, trial, rows), f"{report.name}-trial-{trial.number}"
    return ModelCardData(
        language="en",
        license=HUB_LICENCE.get(workload.data if workload else "", "unknown"),
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=[data] if data else None,
        tags=list(TAGS[trial.config.precision if trial else "nf4"]),
        metrics=list(dict.fromkeys(result.metric_type for result in found)) or None,
        model_name=name if found else None,
        eval_results=found or None,
    )


def _details(report: Report, trial: TrialResult | None, protocol: str) -> str:
    workload = report.workload
    base = workload.base_model if workload else ""
    devices = ", ".join(map(safe, report.measured.environment.get("device", ()))) or NOT_MEASURED
    devices = card_trial.device(trial) if trial else devices
    rows = {"Base model": "not known: nothing was measured"}
    if workload:
        name = f"{BASES[base]} (`{base}`), {SHAPES[base]}" if base in SHAPES else safe(workload.base_caption)
        rows = {"Base model": name, "Base fingerprint": f"`{workload.base_fingerprint[:16]}`"}
    rows["Method"] = HOW[trial.config.precision] if trial else f"{HOW['nf4']}; {BESIDE}"
    if trial:
        rows["This adapter"] = _adapter(report, trial)
    rows |= {
        "Language": "English",
        "Licence": f"code: MIT; {_licences(workload)}",
        "Hardware": f"{devices}; {workload.compute_dtype} arithmetic" if workload else devices,
        "Protocol": protocol,
        "Sweep": f"`{report.name}`, key `{sweep_key(report)}`",
    }
    return table(["", ""], [[what, said] for what, said in rows.items()], n_words=2)


def _licences(workload: Workload | None) -> str:
    base, data = (workload.base_model, workload.data) if workload else ("", "")
    adapters = LICENCE.get(data, "that of the rows they were trained on, which this program does not know")
    return f"base model: {BASE_LICENCE.get(base, 'its own')}; adapters: {adapters}"


def _adapter(report: Report, trial: TrialResult) -> str:
    c = trial.config
    loss = trial.history[-1].eval_loss_nats if trial.history else None
    said = (
        f"trial {trial.number} (key `{trial.key[:16]}`): trained over the base at {BITS[c.precision]}, "
        f"rank {c.rank}, alpha {c.alpha:g}, targets {tables.targets(c)}, learning rate {c.learning_rate:.1e}, "
        f"seed {c.seed}"
    )
    if loss is None:
        return said
    return f"{said}; loss {loss:.4f} nats on the validation rows{whose(report, WHOSE)}"


def _rows(report: Report) -> str:
    workload, counts = report.workload, report.measured.data_counts
    if workload is None:
        return "no rows were read yet"
    said = ", ".join(f"{safe(what)} {n}" for what, n in counts.items()) or "counts not recorded"
    return f"{safe(workload.data)}, digest `{workload.data_digest[:16]}`; rows: {said}"


def _procedure(report: Report) -> str:
    """Each setting of a trial: searched values, or the one that all have."""
    settings, space = report.settings, report.settings.space
    first = settings.config({name: parameter.samples[0] for name, parameter in space.parameters.items()}).to_dict()
    rows = []
    for field in TrialConfig.__dataclass_fields__:
        by_ratio = field == "alpha" and "alpha_ratio" in {*space.parameters, *space.fixed}
        name = "alpha_ratio" if by_ratio else field
        searched = space.parameters.get(name)
        if field == "max_steps" and settings.max_steps is not None:
            searched = None
        if searched is None:
            value = space.fixed["alpha_ratio"] if by_ratio else first[field]
            said = " ".join(value) if isinstance(value, list) else str(value)
        elif searched.choices is not None:
            said = f"searched: {', '.join(map(str, searched.choices))}"
        else:
            low, high = searched.samples
            said = f"searched: {low:g} to {high:g} ({searched.distribution})"
        rows.append([f"`{name}`" + (" (alpha / rank)" if by_ratio else ""), safe(said)])
    return table(["setting", "value"], rows, n_words=2)


def _standing(report: Report) -> str:
    """How far the sweep is, and what a reader of its figures must know."""
    done = f"{report.n_done} of {report.n_expected} trials have ended"
    if not report.states.get("completed"):
        return f"Nothing to show yet: no trial completed ({done})."
    said = f"Of sweep `{report.name}`; {done}. Intervals are 95 % over rows, given the seed, unless said otherwise."
    return said if report.finished else f"{said} **The sweep is not finished: every figure can still change.**"


def _impact(report: Report) -> str:
    measured = report.measured
    if measured.wall_seconds is None or report.workload is None:
        return f"Wall time of this sweep: {NOT_MEASURED}."
    return (
        f"This sweep took {duration(measured.wall_seconds)} from its start to its last end, of which trials trained "
        f"{duration(measured.train_seconds)} in sum{whose(report, WHOSE_COST)}."
    )
