"""A LoRA adapter on a frozen base: attach, detach, turn into files and back (peft)."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainables.models.families import FAMILIES, ordered_targets
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What `PeftModel.from_pretrained` needs."""


def attach(base: "PreTrainedModel", config: TrialConfig, *, base_name: str) -> "PeftModel":
    """Add a fresh adapter in float32; its weights depend on `config.seed` only.

    Equal seeds give equal A matrices at both precisions; B is zero (Hu et al. 2021, section 4.1).

    Args:
        base_name: recorded in the adapter's files as the model it belongs to.
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
        model = get_peft_model(base, _lora_config(config))
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
    """Whether the modules that a config adapts hold (inputs, outputs)."""
    owner = next((family for family in FAMILIES if set(config.targets) <= set(family.targets)), None)
    return config.precision == "16bit" and owner is not None and owner.is_transposed


def detach(model: "PeftModel") -> "PreTrainedModel":
    """Take the adapter off; the base is as it was before `attach`."""
    return _as_loaded(model.unload())


def _as_loaded(base: "PreTrainedModel") -> "PreTrainedModel":
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base.requires_grad_(False).eval()


@contextmanager
def _untouched_on_failure(base: "PreTrainedModel") -> Iterator[None]:
    """Put every module back that was exchanged inside, if it fails there; peft leaves what it has done so far."""
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
    """A (rank, inputs) and B (outputs, rank) of each module of an attached adapter, by their names in the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def fresh_matrices(base: "PreTrainedModel", config: TrialConfig) -> "dict[str, torch.Tensor]":
    """Those of a fresh adapter, on the base's device and not attached to anything."""
    model = attach(base, config, base_name="none")
    try:
        return matrices_of(model)
    finally:
        detach(model)


def to_files(config: TrialConfig, matrices: "Mapping[str, torch.Tensor]", *, base_name: str) -> dict[str, bytes]:
    """An adapter as the files that peft's `save_pretrained` writes, by file name.

    Args:
        matrices: by their names in the model.
        base_name: recorded as the model that it belongs to.
    """
    from safetensors.torch import save

    lora = _lora_config(config).to_dict() | {"base_model_name_or_path": base_name, "inference_mode": True}
    lora["target_modules"] = sorted(lora["target_modules"])  # a set's order would change from process to process
    named = {name_in_file(name): matrix.detach().cpu().contiguous() for name, matrix in matrices.items()}
    settings = json.dumps(lora, indent=2, sort_keys=True).encode()
    return dict(zip(FILES, (settings, save(named, metadata={"format": "pt"})), strict=True))


def name_in_file(name: str) -> str:
    """peft leaves the adapter's own name out of its file."""
    return name.replace(".default.", ".")


def from_files(base: "PreTrainedModel", files: Mapping[str, bytes]) -> "PeftModel":
    """Attach an adapter written by `to_files`, for inference.

    A file that is missing, damaged or of another base is an error, of peft's or safetensors' kind; the base
    is then as it was.
    """
    from peft import PeftModel

    with TemporaryDirectory(prefix="qlora-sweep-") as folder, _untouched_on_failure(base), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay random
        for name in FILES:
            (Path(folder) / name).write_bytes(files[name])
        return PeftModel.from_pretrained(base, folder).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """An adapter outside of any model.

    Attributes:
        matrices: A (rank, inputs) and B (outputs, rank) of each module, by their names in the file.
        targets: the kinds of module that have one.
        scaling: of B A.
    """

    matrices: "Mapping[str, torch.Tensor]"
    targets: tuple[str, ...]
    rank: int
    scaling: float


def read_files(files: Mapping[str, bytes]) -> Weights:
    """What `to_files` wrote, on the host; a damaged file is an error of safetensors' or json's kind."""
    from safetensors.torch import load

    lora = json.loads(files["adapter_config.json"])
    rank = lora["r"]
    return Weights(
        matrices=load(files["adapter_model.safetensors"]),
        targets=ordered_targets(lora["target_modules"]),
        rank=rank,
        scaling=lora["lora_alpha"] / (sqrt(rank) if lora["use_rslora"] else rank),
    )
