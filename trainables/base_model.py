"""The frozen base model at 16 or 4 bits: found on the driver, loaded on a worker.

A source is "demo", a hub id, a local folder with weights, or "random:FOLDER" for a folder with a
config and a tokenizer only: its weights are then drawn from a fixed seed, so that memory and time
are real and quality is not. A folder with STAND_IN_FILE holds a stand-in, trained from nothing for a
short while by tests/bench/stand_in.py, and every result over it says so.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from trainables import demo, hub
from trainables.config import Precision, Weights, Workload
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM_SEED = 0
RANDOM_PREFIX = "random:"
STAND_IN_FILE = "stand_in.json"
"""Says how a stand-in was trained; `seconds` is for how long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model that lies on this machine, ready to load.

    Attributes:
        source: as the user named it.
        folder: config.json, *.safetensors and tokenizer files.
        weights: where the weights come from; "random" ones say nothing about quality.
        stand_in_seconds: for how long a stand-in was trained from nothing, else None.
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
        ConfigError: the folder has no config or no weights, or the hub has no such model.
        Unreachable: the hub does not answer and nothing is cached.
    """
    if source == "demo":
        return BaseModel(source=source, folder=demo.FOLDER, weights="demo")
    if source.startswith(RANDOM_PREFIX):
        folder = _local_folder(source.removeprefix(RANDOM_PREFIX))
        return BaseModel(source=source, folder=_draw_weights(folder, cache), weights="random")
    if source.startswith(("/", ".", "~")) or Path(source).is_dir():
        folder = _local_folder(source)
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"BASE_MODEL: {source} has a config but no *.safetensors; "
                f"to measure cost on random weights say BASE_MODEL={RANDOM_PREFIX}{source}"
            )
        if (folder / STAND_IN_FILE).is_file():
            return BaseModel(
                source=source, folder=folder, weights="stand-in", stand_in_seconds=_stand_in_seconds(folder)
            )
        return BaseModel(source=source, folder=folder, weights="pretrained")
    return BaseModel(source=source, folder=hub.fetch_model(source), weights="pretrained")


def _local_folder(name: str) -> Path:
    folder = Path(name).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"BASE_MODEL: no config.json in {str(folder)!r}; give a model folder, a hub id or 'demo'")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(
            f"BASE_MODEL: no tokenizer in {str(folder)!r}; it needs tokenizer.json, or vocab.json and merges.txt"
        )
    return folder


def _stand_in_seconds(folder: Path) -> float:
    """For how long a stand-in was trained.

    Raises:
        ConfigError: the file does not say so.
    """
    try:
        return float(json.loads((folder / STAND_IN_FILE).read_text(encoding="utf-8"))["seconds"])
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"BASE_MODEL: {STAND_IN_FILE} in {str(folder)!r} gives no seconds; make the stand-in again"
        ) from None


def _draw_weights(folder: Path, cache: Path) -> Path:
    """Write the config of `folder` with seeded random weights under `cache`; find them there later."""
    digest = hashlib.sha256((folder / "config.json").read_bytes() + f"seed {RANDOM_SEED}".encode()).hexdigest()
    drawn = cache / f"random-{digest[:16]}"
    if drawn.exists():
        return drawn
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # of one file, already in memory
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".random-", dir=cache))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    model.save_pretrained(scratch, max_shard_size="100GB")
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt") and not (scratch / path.name).exists():
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
    GPT-2's own dropouts are set to 0.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, workload.compute_dtype)
    config = AutoConfig.from_pretrained(workload.base_folder, local_files_only=True)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
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
    )
    model.requires_grad_(False)
    if precision == "nf4":
        _keep_weights_trainable_through(model)
    return model.eval()


def _keep_weights_trainable_through(model: "PreTrainedModel") -> None:
    """Forbid bitsandbytes to repack 4-bit weights at the first CPU forward in evaluation mode.

    On CPUs with AVX512-BF16 it does so, and the next backward pass raises.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
