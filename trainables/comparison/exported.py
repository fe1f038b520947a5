"""An adapter outside of this program: over its own base, with the loss it was recorded with, merged."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainables.comparison.sensitivity import modules_of, round_trip
from trainables.cost.device import count_gpus
from trainables.data import tokens
from trainables.evaluation import held_out
from trainables.models import base_model, lora
from trainables.values.config import BaseForm
from trainables.values.errors import ConfigError, SweepError
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOSS_ERROR_NATS = 1e-3
"""By how much a reloaded adapter's loss may differ from the recorded one."""


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


def merged_model(workload: Workload, form: BaseForm, files: Mapping[str, bytes]) -> "PreTrainedModel":
    """The base with the adapter in its weights, at 16 bits.

    A 4-bit trial's adapter was trained over what NF4 makes of the weights, so it is added to just that. The sum is
    taken in float32 and rounded once, to the compute dtype, or to float16 where that is float32.
    """
    base = base_model.load(workload, "16bit", "cpu")
    precision, keep_16bit = form
    if precision == "nf4":
        kept: set[torch.nn.Module] = set()
        for name in keep_16bit:
            kept.update(base.get_submodule(name).modules())
        for module in modules_of(base).values():
            if module not in kept:
                module.weight.data = round_trip(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # at 4 bits Conv1D is a plain linear layer
        model = lora.from_files(base.float(), files)
    dtype = torch.float16 if workload.compute_dtype == "float32" else getattr(torch, workload.compute_dtype)
    return model.merge_and_unload().to(dtype)


def checked_loss_nats(folder: Path, form: BaseForm, recorded_nats: float, workload: Workload) -> float:
    """Loss on the validation rows of an exported adapter, read back from its folder on this machine.

    Raises:
        SweepError: it is not the recorded one.
    """
    precision, keep_16bit = form
    base = base_model.load(workload, precision, "cuda" if count_gpus() else "cpu", keep_16bit=keep_16bit)
    model = lora.from_files(base, {name: (folder / name).read_bytes() for name in lora.FILES})
    found = held_out.eval_loss(model, tokens.load(workload.data_folder)["validation"])
    if not abs(found - recorded_nats) <= MAX_LOSS_ERROR_NATS:
        raise SweepError(
            f"the adapter in {folder} has a loss of {found:.4f} nats when read back, recorded are {recorded_nats:.4f}; "
            "on another device or with other versions this can be rounding"
        )
    return found
