"""The frozen base model at 16 or 4 bits: found on the driver, loaded on a worker.

A source is "demo", a hub id, a local folder with weights, or "random:FOLDER" for a folder with a
config and a tokenizer only: its weights are then drawn from a fixed seed, so that memory and time
are real and quality is not. A folder with STAND_IN_FILE holds a stand-in, trained from scratch for a
short while by tests/bench/stand_in.py, and every result over it says so.

PyTorch and transformers are imported where they are used: the command line checks sources without them.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as cached
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from trainables import demo
from trainables.data import hub
from trainables.models.families import MODEL_TYPES, family_of
from trainables.values.config import RANDOM_PREFIX, Precision, Weights, Workload
from trainables.values.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CODE_NAMING_FILES = ("config.json", "tokenizer_config.json")
"""Their `auto_map` may name classes to import from a model's own folder or from another repo."""
GPT2_POSITIONS = 1024
"""Positions of a base whose config does not give them."""
RANDOM_SEED = 0
STAND_IN_FILE = "stand_in.json"
"""Describes how a stand-in was trained; `seconds` is its training time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model that lies on this machine, ready to load.

    Attributes:
        source: as the user named it.
        folder: config.json, *.safetensors and tokenizer files.
        weights: where the weights come from; "random" ones say nothing about quality.
        stand_in_seconds: training time of a stand-in, else None.
    """

    source: str
    folder: Path
    weights: Weights
    stand_in_seconds: float | None = None

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
        folder = hub.fetch_model(source, check=check_architecture)
        return BaseModel(source=source, folder=folder, weights="pretrained")
    if source == "demo":
        return BaseModel(source=source, folder=folder, weights="demo")
    if source.startswith(RANDOM_PREFIX):
        return BaseModel(source=source, folder=_draw_weights(folder, cache), weights="random")
    if (folder / STAND_IN_FILE).is_file():
        return BaseModel(source=source, folder=folder, weights="stand-in", stand_in_seconds=_stand_in_seconds(folder))
    return BaseModel(source=source, folder=folder, weights="pretrained")


def local_folder(source: str) -> Path | None:
    """The checked folder that `source` names on this machine, None where it names a repo on the hub; loads nothing.

    Raises:
        ConfigError: the folder lacks a config, a tokenizer or weights, or see `check_architecture`.
    """
    if source == "demo":
        return demo.FOLDER
    name = source.removeprefix(RANDOM_PREFIX)
    if name == source and not source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        return None
    folder = Path(name).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"BASE_MODEL: no config.json in {str(folder)!r}; give a model folder, a hub id or 'demo'")
    check_architecture(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(
            f"BASE_MODEL: no tokenizer in {str(folder)!r}; it needs tokenizer.json, or vocab.json and merges.txt"
        )
    if name == source and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"BASE_MODEL: {source} has a config but no *.safetensors; "
            f"to measure cost on random weights say BASE_MODEL={RANDOM_PREFIX}{source}"
        )
    return folder


def check_architecture(folder: Path) -> None:
    """Refuse a base by its config files alone, before anything of it is loaded.

    Code that a folder brings is never run: where transformers has the model type itself, it is ignored, which is
    logged; any other model could not be loaded without.

    Raises:
        ConfigError: the model is made of such code, or its `model_type` is not one of MODEL_TYPES.
    """
    model_type = str(_values(folder / "config.json").get("model_type"))
    with_code = [name for name in CODE_NAMING_FILES if "auto_map" in _values(folder / name)]
    if with_code and not _is_transformers_own(model_type):
        raise ConfigError(
            f"BASE_MODEL: {with_code[0]} in {str(folder)!r} names code to run (auto_map), and no code of a model is "
            f"ever run; model_type {model_type!r} is not one of transformers' own; choose a model that is"
        )
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"BASE_MODEL: model_type {model_type!r} in {str(folder / 'config.json')!r} is not supported"
            f"{did_you_mean(model_type, MODEL_TYPES)}"
        )
    if with_code:
        _log_ignored_code(folder, " and ".join(with_code))


def _is_transformers_own(model_type: str) -> bool:
    if model_type in MODEL_TYPES:
        return True
    from transformers.models.auto import auto_mappings  # a table of names; unlike its package it imports no PyTorch

    return model_type in auto_mappings.CONFIG_MAPPING_NAMES


@cached  # a sweep looks at its base more than once
def _log_ignored_code(folder: Path, files: str) -> None:
    logger.warning("base %s: the code that %s names (auto_map) is ignored; transformers' own is used", folder, files)


def _values(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"BASE_MODEL: {str(path)!r} is not a JSON object; bring the file again")
    return values


def context_tokens(folder: Path) -> int:
    """Positions of the base in a folder, from its config alone; GPT2_POSITIONS where it does not give them."""
    values = _values(folder / "config.json")
    n_positions = values.get("n_positions", values.get("max_position_embeddings", GPT2_POSITIONS))
    if not isinstance(n_positions, int):
        raise ConfigError(f"BASE_MODEL: n_positions in {str(folder / 'config.json')!r} is {n_positions!r}, no number")
    return n_positions


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


def _draw_weights(folder: Path, cache: Path) -> Path:
    """A folder under `cache` with the config and tokenizer of `folder` and seeded random weights; made once."""
    copied = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt")]
    hasher = hashlib.sha256(f"seed {RANDOM_SEED}".encode())
    for path in copied:
        hasher.update(f"\n{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    drawn = cache / f"random-{hasher.hexdigest()[:16]}"
    if drawn.exists():
        return drawn
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # of one file, already in memory
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".random-", dir=cache))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.save_pretrained(scratch, max_shard_size="100GB")
    for path in copied:
        if not (scratch / path.name).exists():
            shutil.copy(path, scratch)
    try:
        scratch.rename(drawn)
    except OSError:  # another process was faster, with the same content
        shutil.rmtree(scratch)
        if not drawn.exists():
            raise
    return drawn


def load(workload: Workload, precision: Precision, device: str) -> "PreTrainedModel":
    """Load the base onto `device` ("cuda" or "cpu"), frozen, in evaluation mode.

    "16bit" is the compute dtype throughout. "nf4" quantizes every linear module of the blocks to
    4-bit NormalFloat in blocks of 64 with double quantization (Dettmers et al. 2023,
    arXiv:2305.14314, section 3); embeddings, the tied head and norms stay in the compute dtype.
    The base's own dropouts are set to 0.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, workload.compute_dtype)
    config = AutoConfig.from_pretrained(workload.base_folder, local_files_only=True, trust_remote_code=False)
    family = family_of(config.model_type)
    for name in family.dropouts if family else ():
        setattr(config, name, 0.0)
    quantization = None
    if precision == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        workload.base_folder,
        config=config,
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation="sdpa",
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.requires_grad_(False)
    if precision == "nf4":
        _forbid_repacking(model)
    return model.eval()


def core_of(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """The transformers model itself, without peft's wrapper where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forbid_repacking(model: "PreTrainedModel") -> None:
    """Forbid bitsandbytes to repack 4-bit weights at the first CPU forward in evaluation mode.

    It does so on CPUs with AVX512-BF16, and the next backward pass raises.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
