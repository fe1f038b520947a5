"""A trial as a folder that others can use: adapter, tokenizer, model card, a script; merged or pushed on request."""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.choice import choose
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import adapter_store
from orchestrator.report import card as cards
from orchestrator.report.card import base_on_hub, layers_of
from orchestrator.report.content import report_of
from orchestrator.report.render import render
from orchestrator.security.addresses import refuse_secrets
from trainables.data import hub
from trainables.data.hub_models import named_revision
from trainables.values.config import BaseForm
from trainables.values.errors import ConfigError, did_you_mean
from trainables.values.results import TrialResult
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from orchestrator.ledger.rows import Entry

logger = logging.getLogger(__name__)

BEST = "best"
MERGED, CARD, SCRIPT = "merged", "README.md", "generate.py"
MIN_KEY_CHARS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """The trial that is asked for.

    Attributes:
        trial: its number or the start of its key; or "best", chosen by the other two as orchestrator.analysis.choice
            does.
    """

    trial: str = BEST
    max_memory_mib: float | None = None
    at_knee: bool = False


def chosen(which: Which, sweep: SweepSnapshot) -> tuple[TrialResult, str]:
    """The trial that was asked for, completed, and why it is the one.

    Raises:
        ConfigError: no such trial, or it has no adapter because it did not complete.
    """
    if which.trial == BEST:
        found = choose(sweep, max_memory_mib=which.max_memory_mib, at_knee=which.at_knee)
        return found.trial, found.why
    if which.at_knee or which.max_memory_mib is not None:
        raise ConfigError(f"TRIAL: {which.trial!r} names the trial; say either that, or --max-memory and --knee")
    return _named(which.trial, sweep.trials), "as asked for"


def _named(which: str, trials: Sequence[TrialResult]) -> TrialResult:
    by_number = which.isdecimal() and len(which) < MIN_KEY_CHARS
    found, known = [], [BEST]
    for trial in trials:
        starts = len(which) >= MIN_KEY_CHARS and trial.key.startswith(which)
        if trial.number == int(which) if by_number else starts:
            found.append(trial)
        if trial.state == "completed":
            known.append(str(trial.number))
    if len(found) != 1:
        what = f"{len(found)} trials begin with" if found else "no trial"
        raise ConfigError(
            f"TRIAL: {what} {which!r}; give a number or {MIN_KEY_CHARS} or more characters of a key"
            f"{did_you_mean(which, known)}"
        )
    (trial,) = found
    if trial.state != "completed":
        why = f" ({trial.reason})" if trial.reason else ""
        raise ConfigError(f"TRIAL: trial {trial.number} is {trial.state}{why}; only completed trials keep an adapter")
    return trial


def adapter_of(entry: "Entry", adapters: Path) -> dict[str, bytes]:
    """The files of a trial's adapter by name, from the folder where the sweep keeps them.

    Raises:
        ConfigError: it is gone or not the one that was recorded.
    """
    number, files = entry.result.number, adapter_store.read(adapters, entry.result.key)
    if files is None:
        raise ConfigError(f"TRIAL: trial {number} has no adapter under {adapters} any more")
    if hashlib.sha256(files[adapter_store.WEIGHTS]).hexdigest() != entry.adapter_sha256:
        raise ConfigError(f"TRIAL: the adapter of trial {number} under {adapters} is not the one it was recorded with")
    return files


def write(
    dest: Path, form: BaseForm, workload: Workload, files: Mapping[str, bytes], card: str, *, merge: bool
) -> list[Path]:
    """Write the folder whole or not at all; returns its files.

    Args:
        form: of the base that the adapter was trained on.
        workload: its base_folder must be there.
        files: of the adapter.
        merge: also write the base with the adapter in it, at 16 bits, for programs that know no adapters.
    """
    from transformers import AutoTokenizer, logging

    logging.disable_progress_bar()  # of files on this machine
    tokenizer = AutoTokenizer.from_pretrained(workload.base_folder, local_files_only=True, trust_remote_code=False)
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".export-", dir=dest.parent))
    try:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        tokenizer.save_pretrained(scratch)
        (scratch / CARD).write_text(card, encoding="utf-8")
        (scratch / SCRIPT).write_text(script(form, workload, merged=merge), encoding="utf-8")
        if merge:
            from trainables.comparison.exported import merged_model

            merged_model(workload, form, files).save_pretrained(scratch / MERGED)
            tokenizer.save_pretrained(scratch / MERGED)
        scratch.chmod(0o755)
        if dest.exists():
            dest.rmdir()
        scratch.rename(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(filter(Path.is_file, dest.rglob("*")))


def script(form: BaseForm, workload: Workload, *, merged: bool) -> str:
    """A short program that answers one instruction in the form of the rows, without anything of this project."""
    precision, keep_16bit = form
    four_bits = precision == "nf4" and not merged
    skipped: list[str] = []
    if four_bits and keep_16bit:
        from trainables.models.base_model import skipped_modules

        skipped = skipped_modules(workload, keep_16bit)
    revision = workload.base_commit or named_revision(workload.base_model)[1]
    needed = ["accelerate", *(["bitsandbytes"] if four_bits else []), *([] if merged else ["peft"])]
    return render(
        "generate.py.jinja",
        needed=[*needed, "torch", "transformers"],
        merged=merged,
        four_bits=four_bits,
        skipped=skipped,
        dtype=workload.compute_dtype,
        source=repr(base_on_hub(workload) or workload.base_folder),
        revision=f", revision={revision!r}" if revision else "",
        folder=MERGED,
        row_kind=workload.row_kind,
    )


def run(
    name: str,
    dest: Path,
    which: Which,
    root: Path,
    *,
    merge: bool = False,
    check: bool = False,
    push: str | None = None,
) -> dict[str, Any]:
    """Export one trial of a sweep.

    Args:
        check: read the folder back and hold its loss against the recorded one.
        push: hub repo to upload to; None uploads nothing.
    Returns:
        What was written, JSON-ready.
    Raises:
        ConfigError: see `chosen`, `adapter_of`, `exported.with_base`; `dest` is taken; nobody could use the push.
        SweepError: the adapter that was read back does not have its loss; the folder is kept.
    """
    refuse_secrets("push", push or "")
    snapshot = SweepSnapshot.read(name, root)
    trial, why = chosen(which, snapshot)
    workload = _workload(snapshot, push)
    from trainables.comparison import exported  # brings PyTorch: no wrong name waits for that

    workload = exported.with_base(workload, (root / "cache").resolve())
    card = str(cards.card_of(report_of(snapshot), layers_of(root, workload), trial))
    _refuse_taken(dest)
    adapter, form = _adapter(trial, snapshot), trial.config.base_form
    files = {"files": list(map(str, write(dest, form, workload, adapter, card, merge=merge)))}
    _say_worth(workload)
    loss_nats = trial.history[-1].eval_loss_nats
    done: dict[str, Any] = {"trial": trial.number, "why": why, "key": trial.key, "eval_loss_nats": loss_nats} | files
    if check:
        done["reloaded_loss_nats"] = exported.checked_loss_nats(dest, form, loss_nats, workload)
    if push:
        done["url"] = hub.push_model(dest, push)
    return done


def _say_worth(workload: Workload) -> None:
    if workload.weights != "pretrained":
        logger.info("most of what it answers is wrong; measured on: %s", workload.base_caption)


def _adapter(trial: TrialResult, snapshot: SweepSnapshot) -> dict[str, bytes]:
    (entry,) = [entry for entry in snapshot.entries if entry.result is trial]
    return adapter_of(entry, snapshot.folder / "adapters")


def _refuse_taken(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConfigError(f"DEST: {dest} exists and is not an empty folder; choose another")


def _workload(snapshot: SweepSnapshot, push: str | None) -> Workload:
    """What the trials ran on; refuses a push that nobody could use."""
    name, workload = snapshot.settings.name, snapshot.workload
    if workload is None:
        raise ConfigError(f"NAME: the ledger of sweep {name!r} does not say what its trials ran on")
    if push and base_on_hub(workload) is None:
        raise ConfigError(f"PUSH: base {workload.base_model!r} is on this machine only, so nobody could use it")
    return workload
