"""A trial's settings as other programs take them: Python for peft, and YAML for axolotl, TRL and LLaMA Factory.

The keys are those of axolotl 0.19.0, TRL 1.16.0 and LLaMA Factory 0.9.5; tests hold them against lists of these
programs' own config classes. What a program says by its defaults as this one does (NF4, AdamW's betas) is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from orchestrator.report.render import render
from trainables.data.formats import parse_columns
from trainables.data.hub_models import named_revision
from trainables.data.rows import is_path
from trainables.models.kept import skip_pattern
from trainables.models.lora import is_transposed
from trainables.values.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.values.config import RowKind, TrialConfig

Program = Literal["axolotl", "trl", "llama-factory"]
PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
PROMPT_WITHOUT_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"
PLAIN = {"format": "{instruction}"}
"""Of rows that have no prompt but their own."""
LLAMA_FACTORY_NF4 = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
BUILDERS = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}
"""Suffix of a file -> what of `datasets` reads it, JSON apart."""
MAX_GRAD_NORM = 1.0
"""Of protocol 2."""
OUTPUT = "outputs"


def peft_code(config: "TrialConfig", sweep: "SweepSnapshot") -> str:
    """Python that loads the base as the trial had it and gives it a fresh adapter of the trial's shape."""
    return render(
        "peft.py.jinja",
        config=config,
        base=_base(sweep),
        revision=_revision(sweep),
        skipped=["lm_head", *map(skip_pattern, config.keep_16bit)],
        dtype=_dtype(sweep),
        fan_in_fan_out=is_transposed(config),
    )


def recipe(program: str, config: "TrialConfig", sweep: "SweepSnapshot") -> str:
    """YAML for another trainer, with comments on what it cannot say as this program does.

    Raises:
        ConfigError: no program of that name.
    """
    if program not in get_args(Program):
        raise ConfigError(f"--as: no program {program!r}{did_you_mean(program, get_args(Program))}")
    kind = sweep.workload.row_kind if sweep.workload else "Alpaca"
    makers = {"axolotl": axolotl, "trl": trl, "llama-factory": llama_factory}
    values, comments = makers[program](config, sweep, kind)
    if config.alpha != int(config.alpha):
        comments.append(f"alpha is {config.alpha:g}, and {program} takes whole numbers: scale rank and alpha together")
    if config.keep_16bit:
        comments.append(f"in the trial these stayed at 16 bits, which is not said here: {' '.join(config.keep_16bit)}")
    comments += _about_rows(program, sweep)
    said = (f"for {program}, from sweep {sweep.settings.name}", *comments)
    lines = [f"# {' '.join(comment.split())}" for comment in said]  # a line break would end the comment
    return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


Made = tuple[dict[str, Any], list[str]]
"""Keys and values, and comments."""


def axolotl(config: "TrialConfig", sweep: "SweepSnapshot", kind: "RowKind") -> Made:
    """For `axolotl train FILE`."""
    values: dict[str, Any] = {
        "base_model": _base(sweep),
        **_pinned("revision_of_model", sweep),
        "adapter": "qlora" if config.precision == "nf4" else "lora",
        "load_in_4bit": config.precision == "nf4",
        "lora_r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "lora_dropout": config.dropout,
        "lora_target_modules": [*config.targets],
        "peft_use_rslora": config.rank_stabilized,
        "lora_fan_in_fan_out": is_transposed(config),
        "datasets": [_axolotl_data(sweep, kind)],
        "train_on_inputs": False,
        "sequence_len": config.max_length_tokens,
        "micro_batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler": _schedule(config),
        "warmup_steps": _warmup_steps(config),
        "optimizer": _optimizer(config),
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        **_arithmetic(sweep),
        "output_dir": OUTPUT,
    }
    return values, []


def _axolotl_data(sweep: "SweepSnapshot", kind: "RowKind") -> dict[str, Any]:
    """The rows with the very prompt that the sweep gave them."""
    where, columns = {"path": sweep.settings.data}, parse_columns(sweep.settings.columns)

    def column(field: str) -> str:
        return columns.get(field, field)

    if kind == "chat":
        return where | {"type": "chat_template", "field_messages": column("messages")}
    if kind == "completion":
        return where | {"type": {"field_instruction": column("prompt"), "field_output": column("completion")} | PLAIN}
    fields = {f"field_{field}": column(field) for field in ("instruction", "input", "output")}
    return where | {"type": fields | {"format": PROMPT, "no_input_format": PROMPT_WITHOUT_INPUT}}


def trl(config: "TrialConfig", sweep: "SweepSnapshot", kind: "RowKind") -> Made:
    """For `trl sft --config FILE`."""
    values = {
        "model_name_or_path": _base(sweep),
        **_pinned("model_revision", sweep),
        "dtype": _dtype(sweep),
        "use_peft": True,
        "lora_r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "lora_dropout": config.dropout,
        "lora_target_modules": [*config.targets],
        "use_rslora": config.rank_stabilized,
        "load_in_4bit": config.precision == "nf4",
        "use_bnb_nested_quant": config.precision == "nf4",
        **_trl_data(sweep.settings.data),
        "max_length": config.max_length_tokens,
        "completion_only_loss" if kind != "chat" else "assistant_only_loss": True,
        **_hugging_face(config, sweep),
    }
    wanted = "rows need the columns prompt and completion: see the trainer's page on dataset formats"
    return values, [wanted] if kind == "Alpaca" else []


def _trl_data(data: str) -> dict[str, Any]:
    """A data set of the hub by its name; of a file, which `dataset_name` cannot be, what reads it."""
    if not is_path(data):
        return {"dataset_name": data}
    suffix = Path(data).suffix.lower().removeprefix(".")
    return {"datasets": [{"path": BUILDERS.get(suffix, "json"), "data_files": data}]}


def llama_factory(config: "TrialConfig", sweep: "SweepSnapshot", kind: "RowKind") -> Made:
    """For `llamafactory-cli train FILE`."""
    values = {
        "model_name_or_path": _base(sweep),
        **_pinned("model_revision", sweep),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": config.rank,
        "lora_alpha": _plain(config.alpha),
        "lora_dropout": config.dropout,
        "lora_target": ",".join(config.targets),
        "use_rslora": config.rank_stabilized,
        **(LLAMA_FACTORY_NF4 if config.precision == "nf4" else {}),
        "dataset": "mine",
        "template": {"Alpaca": "alpaca", "completion": "empty"}.get(kind, "default"),
        "cutoff_len": config.max_length_tokens,
        "disable_gradient_checkpointing": not config.gradient_checkpointing,
        **_hugging_face(config, sweep),
    }
    del values["gradient_checkpointing"]
    comments = [f"dataset: name {sweep.settings.data} so in data/dataset_info.json"]
    if kind == "Alpaca":
        comments.append("template alpaca puts a sentence of its own before the prompt that the sweep used")
    if kind == "chat":
        comments.append("template: the one of the base model, see the program's list")
    return values, comments


def _hugging_face(config: "TrialConfig", sweep: "SweepSnapshot") -> dict[str, Any]:
    """Keys of transformers' TrainingArguments."""
    return {
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": _schedule(config),
        "warmup_steps": _warmup_steps(config),
        "optim": _optimizer(config),
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        **_arithmetic(sweep),
        "output_dir": OUTPUT,
    }


def _base(sweep: "SweepSnapshot") -> str:
    """The base as other programs find it: of the demo and of drawn weights, the folder that holds them."""
    named = sweep.settings.base_model
    is_ours = named == "demo" or named.startswith("random:")
    return sweep.workload.base_folder if is_ours and sweep.workload else named_revision(named)[0]


def _revision(sweep: "SweepSnapshot") -> str | None:
    """What the base was pinned to; None where it was not."""
    return named_revision(sweep.settings.base_model)[1]


def _pinned(key: str, sweep: "SweepSnapshot") -> dict[str, str]:
    """The revision under a program's own key; nothing where there is none."""
    revision = _revision(sweep)
    return {key: revision} if revision else {}


def _about_rows(program: str, sweep: "SweepSnapshot") -> Iterator[str]:
    """What of the rows a program is not told by its keys."""
    if sweep.settings.data_split:
        yield f"rows: split {sweep.settings.data_split}"
    if sweep.settings.columns and program != "axolotl":
        yield f"rows: columns {sweep.settings.columns}"


def _dtype(sweep: "SweepSnapshot") -> str:
    return sweep.workload.compute_dtype if sweep.workload else "bfloat16"


def _arithmetic(sweep: "SweepSnapshot") -> dict[str, bool]:
    return {"bf16": _dtype(sweep) == "bfloat16", "fp16": _dtype(sweep) == "float16"}


def _warmup_steps(config: "TrialConfig") -> int:
    return round(config.warmup_share * config.max_steps)


def _schedule(config: "TrialConfig") -> str:
    """transformers' name of it: its "constant" knows no warm-up."""
    return "constant_with_warmup" if config.schedule == "constant" and config.warmup_share else config.schedule


def _optimizer(config: "TrialConfig") -> str:
    return "adamw_bnb_8bit" if config.optimizer == "adamw_8bit" else "adamw_torch"


def _plain(number: float) -> float | int:
    """A whole number as one."""
    return int(number) if number == int(number) else number
