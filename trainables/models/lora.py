"""A LoRA adapter on a frozen base, by peft: attach, detach, write to files, read back.

torch and peft are imported where they are used: the export command imports this module for its file names.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainables.data.hub_models import named_revision
from trainables.models.families import FAMILIES, ordered_targets
from trainables.models.families.generic import sizes_of
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What `PeftModel.from_pretrained` needs."""


def attach(
    base: "PreTrainedModel", config: TrialConfig, *, base_name: str, without_weights: bool = False
) -> "PeftModel":
    """Add a fresh adapter in float32; its weights depend on `config.seed` only.

    Equal seeds give equal A matrices at both precisions; B is zero (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    Args:
        base_name: the model that the adapter belongs to, as its files will name it.
        without_weights: they are to be set, and are on no device until then.
    Raises:
        ConfigError: a target matches no module of this base.
    """
    import torch
    from peft import get_peft_model

    names = [name for name, _ in base.named_modules()]
    for target in config.targets:
        if not any(name.endswith(f".{target}") for name in names):
            raise ConfigError(f"targets: {target!r} matches no module of {base_name}")
    torch.manual_seed(config.seed)
    with _untouched_on_failure(base), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*second time.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # of a Conv1D that stays at 16 bits
        model = get_peft_model(base, _lora_config(config), low_cpu_mem_usage=without_weights)
    model.peft_config["default"].base_model_name_or_path = base_name
    return model


def _lora_config(config: TrialConfig) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilized,
        target_modules=list(config.targets),
        # bitsandbytes stores a Conv1D transposed, as a plain linear layer.
        fan_in_fan_out=is_transposed(config),
        task_type="CAUSAL_LM",
    )


def is_transposed(config: TrialConfig) -> bool:
    """Whether the weights of the modules that a config adapts are (inputs, outputs)."""
    for family in FAMILIES:
        if set(config.targets) <= set(family.targets):
            return config.precision == "16bit" and family.is_transposed
    return False


def detach(model: "PeftModel") -> "PreTrainedModel":
    """Take the adapter off; the base is as it was before `attach`."""
    return _as_loaded(model.unload())


def _as_loaded(base: "PreTrainedModel") -> "PreTrainedModel":
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base.requires_grad_(False).eval()


@contextmanager
def _untouched_on_failure(base: "PreTrainedModel") -> Iterator[None]:
    """If the block fails, put back every module that it replaced; peft would leave half an adapter."""
    modules = dict(base.named_modules())
    try:
        yield
    except BaseException:
        for name, module in modules.items():
            if base.get_submodule(name) is not module:
                base.set_submodule(name, module)
        _as_loaded(base)
        raise


def matrices_of(model: "PeftModel") -> "dict[str, torch.Tensor]":
    """A (rank, inputs) and B (outputs, rank) of every adapted module, by their names in the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def fresh_matrices(base: "PreTrainedModel", config: TrialConfig) -> "dict[str, torch.Tensor]":
    """The matrices of a fresh adapter, on the base's device, attached to nothing."""
    model = attach(base, config, base_name="none")
    try:
        return matrices_of(model)
    finally:
        detach(model)


def blank_matrices(base: "PreTrainedModel", config: TrialConfig) -> "dict[str, torch.nn.Parameter]":
    """Matrices of the names, sizes and order of `fresh_matrices` that are all zero: no adapter is made for them.

    They are float32, on the base's device.
    """
    import torch

    matrices = {}
    for name, module in base.named_modules():
        if any(name.endswith(f".{target}") for target in config.targets):
            inputs, outputs = sizes_of(module)
            for letter, size in (("A", (config.rank, inputs)), ("B", (outputs, config.rank))):
                blank = torch.nn.Parameter(torch.zeros(size, device=base.device))
                matrices[f"base_model.model.{name}.lora_{letter}.default.weight"] = blank
    return matrices


def to_files(
    config: TrialConfig, matrices: "Mapping[str, torch.Tensor]", *, base_name: str, commit: str | None = None
) -> dict[str, bytes]:
    """An adapter as the files that peft's `save_pretrained` writes, by file name.

    Args:
        matrices: by their names in the model.
        base_name: the model that the adapter belongs to.
        commit: that its revision came to, which names the same weights for good; None where it is not known.
    """
    from safetensors.torch import save

    name, revision = named_revision(base_name)
    based_on = {"base_model_name_or_path": name, "revision": commit or revision}
    settings = _lora_config(config).to_dict() | based_on | {"inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])  # a set's order changes from process to process
    on_host = {name_in_file(name): matrix.detach().cpu().contiguous() for name, matrix in matrices.items()}
    return {
        "adapter_config.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
        "adapter_model.safetensors": save(on_host, metadata={"format": "pt"}),
    }


def name_in_file(name: str) -> str:
    """The name of a matrix in peft's file, which leaves out the adapter's own name ("default")."""
    return name.replace(".default.", ".")


def from_files(base: "PreTrainedModel", files: Mapping[str, bytes]) -> "PeftModel":
    """Attach an adapter written by `to_files`, for inference.

    A file that is missing, damaged or of another base is an error, of peft's or safetensors' kind; the base
    is then as it was.
    """
    from peft import PeftModel

    with TemporaryDirectory(prefix="qlora-sweep-") as folder, _untouched_on_failure(base), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay random
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # of a Conv1D that stays at 16 bits
        for name in FILES:
            (Path(folder) / name).write_bytes(files[name])
        return PeftModel.from_pretrained(base, folder).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """An adapter that is attached to no model, on the host.

    Attributes:
        matrices: A (rank, inputs) and B (outputs, rank) of every adapted module, by their names in the file.
        targets: the adapted modules, see TrialConfig.targets.
        rank: of A and B.
        scaling: factor on B A.
    """

    matrices: "Mapping[str, torch.Tensor]"
    targets: tuple[str, ...]
    rank: int
    scaling: float


def read_files(files: Mapping[str, bytes]) -> AdapterWeights:
    """Read what `to_files` wrote; a damaged file is an error of safetensors' or json's kind."""
    from safetensors.torch import load

    settings = json.loads(files["adapter_config.json"])
    rank = settings["r"]
    return AdapterWeights(
        matrices=load(files["adapter_model.safetensors"]),
        targets=ordered_targets(settings["target_modules"]),
        rank=rank,
        scaling=settings["lora_alpha"] / (sqrt(rank) if settings["use_rslora"] else rank),
    )
