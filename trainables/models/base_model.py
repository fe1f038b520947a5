"""The frozen base model at 16 or 4 bits: found on the driver, loaded on a worker.

A source is "demo", a hub id, a local folder with weights, or "random:FOLDER" for a folder with a
config and a tokenizer only: its weights are then drawn from a fixed seed, so that memory and time
are real and quality is not. A folder with STAND_IN_FILE holds a stand-in, trained from scratch for a
short while by tests/bench/stand_in.py, and every result over it says so.

PyTorch and transformers are imported where they are used: the command line checks sources without them.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trainables import demo
from trainables.data import hub_models
from trainables.models import random_weights
from trainables.models.architecture import (
    GENERATION_FILE,
    check_architecture,
    check_no_adapter,
    context_tokens,
    read_values,
)
from trainables.models.families import family_of
from trainables.models.kept import skip_pattern
from trainables.models.stored import check_stored, refuse_other_weights, weight_files
from trainables.values.config import RANDOM_PREFIX, Precision, Weights
from trainables.values.errors import ConfigError, nearest
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

__all__ = ["BaseModel", "context_tokens", "find", "load", "local_folder"]

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""A tokenizer is one of them, the second with merges.txt."""
STAND_IN_FILE = "stand_in.json"
"""Describes how a stand-in was trained; `seconds` is its training time."""
NOTE_FILE = "base_note.txt"
"""In a folder of pretrained weights: a few words that are said beside every figure, such as what was done to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model that lies on this machine, ready to load.

    Attributes:
        source: as the user named it.
        folder: config.json, *.safetensors and tokenizer files.
        weights: where the weights come from; "random" ones say nothing about quality.
        stand_in_seconds: training time of a stand-in, else None.
        note: what NOTE_FILE says, on one line; None without it.
    """

    source: str
    folder: Path
    weights: Weights
    stand_in_seconds: float | None = None
    note: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) over config and weights."""
        hasher = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        return hasher.hexdigest()


def find(source: str, cache: Path) -> BaseModel:
    """Bring the model named by `source` onto this machine.

    Args:
        cache: where random weights are written, once per config.
    Raises:
        ConfigError: see `local_folder` and `check_architecture`, or the hub has no such model.
        Unreachable: the hub does not answer and nothing is cached.
    """
    folder = local_folder(source)
    if folder is None:
        folder = hub_models.fetch_model(source, check=check_architecture)
        return BaseModel(source=source, folder=folder, weights="pretrained")
    if source == "demo":
        return BaseModel(source=source, folder=folder, weights="demo")
    if source.startswith(RANDOM_PREFIX):
        return BaseModel(source=source, folder=random_weights.drawn(folder, cache), weights="random")
    if (folder / STAND_IN_FILE).is_file():
        return BaseModel(source=source, folder=folder, weights="stand-in", stand_in_seconds=_stand_in_seconds(folder))
    return BaseModel(source=source, folder=folder, weights="pretrained", note=_note(folder))


def local_folder(source: str) -> Path | None:
    """The checked folder that `source` names on this machine, None where it names a repo on the hub; loads nothing.

    Raises:
        ConfigError: the folder lacks a config, a tokenizer or weights; no hub can have the name; or see
            `check_architecture`.
    """
    folder = _named_folder(source)
    if folder is None:
        hub_models.check_hub_name(source)
    if folder is None or source == "demo":
        return folder
    check_no_adapter(folder)
    if any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"BASE_MODEL: {str(folder)!r} holds GGUF files alone, whose weights are quantized already; "
            "give the model that they were made from"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"BASE_MODEL: no config.json in {str(folder)!r}; give a model folder, a hub id or 'demo'")
    check_architecture(folder)
    read_values(folder / GENERATION_FILE)  # refused where it is damaged
    _check_tokenizer(folder)
    if not source.startswith(RANDOM_PREFIX):
        if not weight_files(folder):
            raise ConfigError(
                f"BASE_MODEL: {source} has a config but no *.safetensors; "
                f"to measure cost on random weights say BASE_MODEL={RANDOM_PREFIX}{source}"
            )
        check_stored(folder)
    return folder


def _check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, or with one that cannot be read with what is installed."""
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        raise ConfigError(
            f"BASE_MODEL: no tokenizer in {str(folder)!r}; it needs tokenizer.json, tokenizer.model, or vocab.json and "
            "merges.txt"
        )
    if present == ["tokenizer.model"] and find_spec("sentencepiece") is None:
        raise ConfigError(
            f"BASE_MODEL: {str(folder)!r} has a tokenizer.model alone, which needs `pip install sentencepiece "
            "protobuf`, or a tokenizer.json beside it"
        )


def _named_folder(source: str) -> Path | None:
    """The folder that `source` names on this machine, as it is; None where it names a repo on the hub."""
    if source == "demo":
        return demo.FOLDER
    name = source.removeprefix(RANDOM_PREFIX)
    if name == source and not source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        return None
    return Path(os.path.expanduser(name)).resolve()


def config_folder(source: str) -> Path | None:
    """A folder with the config.json of a base, its own or the hub's cache; None where there is none on this machine."""
    folder = _named_folder(source) or hub_models.cached_config(source)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _note(folder: Path) -> str | None:
    path = folder / NOTE_FILE
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split()) or None if path.is_file() else None


def _stand_in_seconds(folder: Path) -> float:
    """Training time of a stand-in.

    Raises:
        ConfigError: its file is damaged or does not give it.
    """
    try:
        return float(json.loads((folder / STAND_IN_FILE).read_text(encoding="utf-8"))["seconds"])
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"BASE_MODEL: {STAND_IN_FILE} in {str(folder)!r} gives no seconds; make the stand-in again"
        ) from None


def load(workload: Workload, precision: Precision, device: str, keep_16bit: tuple[str, ...] = ()) -> "PreTrainedModel":
    """Load the base onto `device` ("cuda" or "cpu"), frozen, in evaluation mode.

    "16bit" is the compute dtype throughout. "nf4" quantizes every linear module of the blocks to
    4-bit NormalFloat in blocks of 64 with double quantization (Dettmers et al. 2023,
    arXiv:2305.14314, section 3); embeddings, the head (tied or not), norms and the modules and blocks that `keep_16bit`
    names stay in the compute dtype.
    The base's own dropouts are set to 0. Weights are mapped from disk and go to the device tensor by tensor: the host
    never holds them all.

    Raises:
        ConfigError: the weights in the folder are not those of its config, or the base has no module of such a name.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if device == "cuda":
        _turn_cudnns_attention_off()
    config = _without_dropout(workload.base_folder)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            workload.base_folder,
            config=config,
            dtype=getattr(torch, workload.compute_dtype),
            quantization_config=_nf4(workload, keep_16bit) if precision == "nf4" else None,
            attn_implementation="sdpa" if family_of(config.model_type) else None,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except ValueError as error:
        if "Unrecognized configuration" not in str(error):
            raise
        raise ConfigError(f"BASE_MODEL: {workload.base_model}: {str(error).strip().splitlines()[0]}") from None
    refuse_other_weights(workload.base_model, loading)
    model.requires_grad_(False)
    if precision == "nf4":
        _forbid_repacking(model)
    return model.eval()


def _turn_cudnns_attention_off() -> None:
    """In this process: with a mask its gradients may not be finite, https://github.com/pytorch/pytorch/issues/196678."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def _without_dropout(folder: str) -> "PretrainedConfig":
    """The config of a base with all its own dropouts at 0."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family = family_of(config.model_type)
    for name in family.dropouts if family else dropouts_of(config):
        setattr(config, name, 0.0)
    return config


def _nf4(workload: Workload, keep_16bit: tuple[str, ...]) -> "BitsAndBytesConfig":
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, workload.compute_dtype),
        llm_int8_skip_modules=skipped_modules(workload, keep_16bit) if keep_16bit else None,
    )


def skipped_modules(workload: Workload, keep_16bit: tuple[str, ...]) -> list[str]:
    """Names that bitsandbytes is told not to quantize: what it leaves by itself (head, tied weights), and these.

    Raises:
        ConfigError: the base has no module of such a name.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers.base import get_keys_to_not_convert

    config = AutoConfig.from_pretrained(workload.base_folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    modules = dict(model.named_modules())
    for name in keep_16bit:
        if name not in modules:
            raise ConfigError(f"keep_16bit: {workload.base_model} has no module {name!r}{nearest(name, modules)}")
    return [*sorted(get_keys_to_not_convert(model)), *map(skip_pattern, keep_16bit)]


def dropouts_of(config: "PretrainedConfig") -> list[str]:
    """Fields of a config that hold a probability of dropout, by their names; for a base of no family."""
    names = []
    for name, value in config.to_dict().items():
        if type(value) is float and ("drop" in name):
            names.append(name)
    return names


def _forbid_repacking(model: "PreTrainedModel") -> None:
    """Forbid bitsandbytes to repack 4-bit weights at the first CPU forward in evaluation mode.

    It does so on CPUs with AVX512-BF16, and the next backward pass raises.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
