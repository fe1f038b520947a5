"""A trial as a folder that others can use: adapter, tokenizer, model card, a script; merged or pushed on request."""

import hashlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from orchestrator import settings as settings_file
from orchestrator.analysis.choice import choose
from orchestrator.analysis.front import REFERENCE
from orchestrator.ledger import Ledger
from orchestrator.report import card as cards
from orchestrator.report import content as reports
from orchestrator.report.card import base_on_hub, layers_of
from orchestrator.security.addresses import refuse_secrets
from orchestrator.settings import SweepSettings
from orchestrator.workers import adapter_store
from trainables.cost.device import count_gpus
from trainables.data import hub
from trainables.data.hub_models import named_revision
from trainables.models import base_model, lora
from trainables.values.config import Precision, Workload
from trainables.values.errors import ConfigError, SweepError, did_you_mean
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BEST = "best"
MERGED, CARD, SCRIPT = "merged", "README.md", "generate.py"
MIN_KEY_CHARS = 6
MAX_LOSS_ERROR_NATS = 1e-3
"""By how much a reloaded adapter's loss may differ from the recorded one."""


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


def chosen(
    which: Which, trials: Sequence[TrialResult], settings: SweepSettings, reference: Sequence[float] | None = None
) -> tuple[TrialResult, str]:
    """The trial that was asked for, completed, and why it is the one.

    Raises:
        ConfigError: no such trial, or it has no adapter because it did not complete.
    """
    if which.trial == BEST:
        found = choose(trials, settings, reference, max_memory_mib=which.max_memory_mib, at_knee=which.at_knee)
        return found.trial, found.why
    if which.at_knee or which.max_memory_mib is not None:
        raise ConfigError(f"TRIAL: {which.trial!r} names the trial; say either that, or --max-memory and --knee")
    return _named(which.trial, trials), "as asked for"


def _named(which: str, trials: Sequence[TrialResult]) -> TrialResult:
    if which.isdecimal() and len(which) < MIN_KEY_CHARS:
        found = [trial for trial in trials if trial.number == int(which)]
    else:
        found = [trial for trial in trials if len(which) >= MIN_KEY_CHARS and trial.key.startswith(which)]
    if len(found) != 1:
        what = f"{len(found)} trials begin with" if found else "no trial"
        known = [BEST, *(str(trial.number) for trial in trials if trial.state == "completed")]
        raise ConfigError(
            f"TRIAL: {what} {which!r}; give a number or {MIN_KEY_CHARS} or more characters of a key"
            f"{did_you_mean(which, known)}"
        )
    (trial,) = found
    if trial.state != "completed":
        why = f" ({trial.reason})" if trial.reason else ""
        raise ConfigError(f"TRIAL: trial {trial.number} is {trial.state}{why}; only completed trials keep an adapter")
    return trial


def write(
    dest: Path, trial: TrialResult, workload: Workload, *, adapters: Path, sha256: str | None, card: str, merge: bool
) -> list[Path]:
    """Write the folder whole or not at all; returns its files.

    Args:
        workload: its base_folder must be there.
        adapters: where the sweep keeps them.
        sha256: of the adapter's weights, as recorded.
        merge: also write the base with the adapter in it, at 16 bits, for programs that know no adapters.
    Raises:
        ConfigError: `dest` is taken, or the adapter is gone or not the one that was recorded.
    """
    from transformers import AutoTokenizer

    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConfigError(f"DEST: {dest} exists and is not an empty folder; choose another")
    files = adapter_store.read(adapters, trial.key)
    if files is None:
        raise ConfigError(f"TRIAL: trial {trial.number} has no adapter under {adapters} any more")
    if hashlib.sha256(files[adapter_store.WEIGHTS]).hexdigest() != sha256:
        raise ConfigError(
            f"TRIAL: the adapter of trial {trial.number} under {adapters} is not the one it was recorded with"
        )
    tokenizer = AutoTokenizer.from_pretrained(workload.base_folder, local_files_only=True, trust_remote_code=False)
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".export-", dir=dest.parent))
    try:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        tokenizer.save_pretrained(scratch)
        (scratch / CARD).write_text(card, encoding="utf-8")
        (scratch / SCRIPT).write_text(script(trial.config.precision, workload, merged=merge), encoding="utf-8")
        if merge:
            merged_model(workload, trial.config.precision, files).save_pretrained(scratch / MERGED)
            tokenizer.save_pretrained(scratch / MERGED)
        scratch.chmod(0o755)
        if dest.exists():
            dest.rmdir()
        scratch.rename(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(path for path in dest.rglob("*") if path.is_file())


def script(precision: Precision, workload: Workload, *, merged: bool) -> str:
    """A short program that answers one instruction, without anything of this project."""
    source = base_on_hub(workload) or workload.base_folder
    _, revision = named_revision(workload.base_model)
    how = f'dtype="{workload.compute_dtype}", device_map="auto", trust_remote_code=False'
    how += f", revision={revision!r}" if revision else ""
    imports, quantized = "AutoModelForCausalLM, AutoTokenizer", ""
    if precision == "nf4" and not merged:
        imports += ", BitsAndBytesConfig"
        quantized = (
            'four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f'bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="{workload.compute_dtype}")\n'
        )
        how += ", quantization_config=four_bits"
    model = (
        f"base = AutoModelForCausalLM.from_pretrained({source!r}, {how})\nmodel = PeftModel.from_pretrained(base, here)"
    )
    if merged:
        how = 'dtype="auto", device_map="auto", trust_remote_code=False'
        model = f'model = AutoModelForCausalLM.from_pretrained(here / "{MERGED}", {how})'
    needed = ["accelerate", "torch", "transformers"] + ([] if merged else ["peft"])
    needed += ["bitsandbytes"] if quantized else []
    return (
        '"""Answer an instruction: python generate.py "Name three colours." """\n'
        "import sys\n"
        "from importlib.util import find_spec\n"
        "from pathlib import Path\n"
        "if len(sys.argv) != 2:\n"
        "    print(__doc__, file=sys.stderr)\n"
        "    sys.exit(2)\n"
        f"missing = [name for name in {sorted(needed)} if not find_spec(name)]\n"
        "if missing:\n"
        """    print(f"this needs: {sys.executable} -m pip install {' '.join(missing)}", file=sys.stderr)\n"""
        "    sys.exit(2)\n"
        + ("" if merged else "from peft import PeftModel\n")
        + f"from transformers import {imports}\n"
        "here = Path(__file__).parent\n"
        "tokenizer = AutoTokenizer.from_pretrained(here, trust_remote_code=False)\n"
        f"{quantized}{model}\n"
        'prompt = f"### Instruction:\\n{sys.argv[1]}\\n\\n### Response:\\n"\n'
        'tokens = tokenizer(prompt, return_tensors="pt").to(model.device)\n'
        "answer = model.generate(**tokens, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.eos_token_id)\n"
        'print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def merged_model(workload: Workload, precision: Precision, files: Mapping[str, bytes]) -> "PreTrainedModel":
    """The base with the adapter in its weights, at 16 bits.

    A 4-bit trial's adapter was trained over what NF4 makes of the weights, so it is added to just that. The sum is
    taken in float32 and rounded once, to the compute dtype, or to float16 where that is float32.
    """
    import torch

    from trainables.comparison.sensitivity import modules_of, round_trip

    base = base_model.load(workload, "16bit", "cpu")
    if precision == "nf4":
        for module in modules_of(base).values():
            module.weight.data = round_trip(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # at 4 bits Conv1D is a plain linear layer
        model = lora.from_files(base.float(), files)
    dtype = torch.float16 if workload.compute_dtype == "float32" else getattr(torch, workload.compute_dtype)
    return model.merge_and_unload().to(dtype)


def reloaded_loss_nats(folder: Path, trial: TrialResult, workload: Workload, device: str) -> float:
    """Held-out loss on the validation rows of an exported adapter, read back from its folder."""
    from trainables.data import tokens
    from trainables.evaluation import held_out

    base = base_model.load(workload, trial.config.precision, device)
    files = {name: (folder / name).read_bytes() for name in lora.FILES}
    return held_out.eval_loss(lora.from_files(base, files), tokens.load(workload.data_folder)["validation"])


def with_base(workload: Workload, cache: Path) -> Workload:
    """The workload with its base on this machine, fetched again where it is gone.

    Raises:
        ConfigError, Unreachable: it cannot be had, or is another one by now.
    """
    if (Path(workload.base_folder) / "config.json").is_file():
        return workload
    found = base_model.find(workload.base_model, cache)
    if found.fingerprint() != workload.base_fingerprint:
        raise ConfigError(f"BASE_MODEL: {workload.base_model} is not what the sweep was run on; bring that one back")
    return replace(workload, base_folder=str(found.folder.resolve()))


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
        ConfigError: see `chosen`, `write` and `with_base`; or a push that nobody could use.
        SweepError: the adapter that was read back does not have its loss; the folder is kept.
    """
    refuse_secrets("push", push or "")
    folder = settings_file.sweep_folder(name, root)
    settings = settings_file.load(folder)
    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        report, trials = reports.read(settings, ledger), ledger.trials()
        trial, why = chosen(which, trials, settings, ledger.fact(REFERENCE))
        sha256 = ledger.entry(trial.key).adapter_sha256  # type: ignore[union-attr]
    finally:
        ledger.close()
    if report.workload is None:
        raise ConfigError(f"NAME: the ledger of sweep {name!r} does not say what its trials ran on")
    if push and base_on_hub(report.workload) is None:
        raise ConfigError(f"PUSH: base {report.workload.base_model!r} is on this machine only, so nobody could use it")
    workload = with_base(report.workload, (root / "cache").resolve())
    card = str(cards.card_of(report, layers_of(root, workload), trial))
    files = write(dest, trial, workload, adapters=folder / "adapters", sha256=sha256, card=card, merge=merge)
    done: dict[str, Any] = {
        "trial": trial.number,
        "why": why,
        "key": trial.key,
        "eval_loss_nats": trial.history[-1].eval_loss_nats,
        "files": [str(path) for path in files],
    }
    if check:
        done["reloaded_loss_nats"] = checked_loss_nats(dest, trial, workload)
    if push:
        done["url"] = hub.push_model(dest, push)
    return done


def checked_loss_nats(dest: Path, trial: TrialResult, workload: Workload) -> float:
    """The loss of an exported folder read back on this machine.

    Raises:
        SweepError: it is not the recorded one.
    """
    found = reloaded_loss_nats(dest, trial, workload, "cuda" if count_gpus() else "cpu")
    recorded = trial.history[-1].eval_loss_nats
    if not abs(found - recorded) <= MAX_LOSS_ERROR_NATS:
        raise SweepError(
            f"the adapter in {dest} has a loss of {found:.4f} nats when read back, recorded are {recorded:.4f}; "
            "on another device or with other versions this can be rounding"
        )
    return found
