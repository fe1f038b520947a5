"""A model card from a sweep's ledger: Markdown under a metadata block that the Hugging Face hub reads."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from orchestrator.report import model_index
from orchestrator.report.render import headlines, render
from orchestrator.report.values import SweepReport
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import RECORDED
from trainables.data import rows
from trainables.data.hub_models import named_revision
from trainables.values.config import LATER_FIELDS, Precision, TrialConfig, canonical_json
from trainables.values.files import write_whole
from trainables.values.results import TrialResult
from trainables.values.workload import Workload

HUB_LICENCE = {"tatsu-lab/alpaca": "cc-by-nc-4.0", "demo": "mit"}
"""Of adapters, by the rows they were trained on; in the hub's words."""
UNSAID_LICENCE = "that-of-the-rows"
"""Name of the hub's licence "other": of rows whose licence nobody said."""
TAGS: Mapping[Precision, tuple[str, ...]] = {"nf4": ("lora", "qlora", "nf4"), "16bit": ("lora",)}
NO_KEY = frozenset(
    {"name", "base_model", "data", "compute_dtype", "address", "tracking_uri", "insecure", "gpus_per_trial"}
)
"""Settings that decide no result, or that the workload says more exactly."""
Layers = Mapping[str, Any]
"""A recorded sensitivity run, as orchestrator.sensitivity.run writes it."""


def layers_of(root: Path, workload: Workload | None) -> Layers | None:
    """The newest sensitivity run over the same base and rows, else a recorded one, if there is one.

    Raises:
        ConfigError: others may have written it.
    """
    same = ("base_fingerprint", "data_digest")
    own = sorted((root / "sensitivity").glob("*/sensitivity.json"), key=lambda p: (p.stat().st_mtime, p.parent.name))
    recorded = sorted((root / RECORDED).glob("*/sensitivity.json"))
    for path in [*reversed(own), *recorded] if workload else []:
        if path in own:
            refuse_shared(path.parent, root, field="sensitivity")
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found["workload"][name] == getattr(workload, name) for name in same):
            return found
    return None


def card_of(
    report: SweepReport,
    layers: Layers | None = None,
    trial: TrialResult | None = None,
    *,
    licence: str | None = None,
    answers: str | None = None,
) -> ModelCard:
    """Make the card.

    Args:
        layers: a sensitivity run over the same base and rows.
        trial: that the card is about, as it goes with its adapter; None for a card of the whole sweep.
        licence: of the rows as the user says it, in the hub's words, where it is none of HUB_LICENCE.
        answers: Markdown of orchestrator.report.answers, to be a section of its own.
    """
    shown = replace(report, workload=_without_paths(report.workload)) if report.workload else report
    text = render(
        "card.md",
        card_data=_metadata(report, shown, trial, licence).to_yaml(),
        report=shown,
        headlines=headlines(shown),
        layers=layers,
        best_4bit=model_index.compared_best(shown),
        sweep_key=sweep_key(shown),
        sweep_settings=_sweep_settings(shown),
        said_licence=licence,
        answers=answers,
        trial=trial,
        trial_settings=_trial_settings(trial.config) if trial else None,
        hub_base=base_on_hub(report.workload) if report.workload else None,
        compared=model_index.compared(trial) if trial else None,
        finalist=shown.finalist(trial.number) if trial else None,
    )
    return ModelCard(text)


def write(card: ModelCard, path: Path) -> Path:
    """Write a card whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, str(card))


def sweep_key(report: SweepReport) -> str:
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
    repo_id, _ = named_revision(workload.base_model)
    cached = f"models--{repo_id.replace('/', '--')}"  # the hub's libraries name their folders so
    return repo_id if cached in Path(workload.base_folder).parts else None


def _data_on_hub(workload: Workload) -> str | None:
    is_file = rows.is_path(workload.data)
    return None if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", workload.data, re.ASCII) else workload.data


def _without_paths(workload: Workload) -> Workload:
    """A card travels: of a folder or file of this machine it tells the name only."""
    base, data = workload.base_model, workload.data
    if base_on_hub(workload) is None and base != "demo":
        base = Path(base.removeprefix("random:")).name
    return replace(workload, base_model=base, data=data if _data_on_hub(workload) else Path(data).name)


def _metadata(report: SweepReport, shown: SweepReport, trial: TrialResult | None, licence: str | None) -> ModelCardData:
    """What the hub reads; ids are named only where the hub knows them."""
    workload = report.workload
    base, data = (base_on_hub(workload), _data_on_hub(workload)) if workload else (None, None)
    rows = {}
    if shown.workload:
        rows = {"dataset_type": data or "local", "dataset_name": shown.workload.data}
    found, name = model_index.of_sweep(shown, rows) if workload else [], report.name
    if trial:
        found, name = model_index.of_trial(shown, trial, rows), f"{report.name}-trial-{trial.number}"
    known = HUB_LICENCE.get(workload.data if workload else "", licence or "other")
    return ModelCardData(
        language="en",
        license=known,
        license_name=None if known != "other" else UNSAID_LICENCE,
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=[data] if data else None,
        tags=list(TAGS[trial.config.precision if trial else "nf4"]),
        metrics=list(dict.fromkeys(result.metric_type for result in found)) or None,
        model_name=name if found else None,
        eval_results=found or None,
    )


def _trial_settings(config: TrialConfig) -> dict[str, str]:
    return {f"`{name}`": _text_of(value) for name, value in config.to_dict().items()}


def _sweep_settings(report: SweepReport) -> dict[str, str]:
    """Each setting of a trial: searched values, or the one that all have."""
    settings, space = report.settings, report.settings.space
    config = settings.config({name: parameter.samples[0] for name, parameter in space.parameters.items()})
    first = LATER_FIELDS | config.to_dict()
    rows = {}
    for field in TrialConfig.__dataclass_fields__:
        by_ratio = field == "alpha" and "alpha_ratio" in {*space.parameters, *space.fixed}
        name = "alpha_ratio" if by_ratio else field
        searched = space.parameters.get(name)
        if field == "max_steps" and settings.max_steps is not None:
            searched = None
        if searched is None and field == "keep_16bit":
            said = _text_of(settings.keep_16bit or space.fixed.get(field, ()))
        elif searched is None:
            said = _text_of(space.fixed["alpha_ratio"] if by_ratio else first[field])
        elif searched.choices is not None:
            said = f"searched: {', '.join(map(str, searched.choices))}"
        else:
            low, high = searched.samples
            said = f"searched: {low:g} to {high:g} ({searched.distribution})"
        rows[f"`{name}`" + (" (alpha / rank)" if by_ratio else "")] = said
    return rows


def _text_of(value: Any) -> str:
    return (" ".join(value) or "none") if isinstance(value, list | tuple) else str(value)
