"""Whether a base can be adapted, from its config files alone: before weights are fetched or a GPU is touched."""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import cache as cached
from pathlib import Path
from typing import Any

from trainables.models.families import MODEL_TYPES
from trainables.values.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

CODE_NAMING_FILES = ("config.json", "tokenizer_config.json")
"""Their `auto_map` may name classes to import from a model's own folder or from another repo."""
ADAPTER_FILE = "adapter_config.json"
ENCODER_DECODERS = frozenset(
    {"t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "longt5", "switch_transformers"}
)
RECURRENT = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "xlstm"})
EXPERTS = frozenset({"mixtral", "dbrx", "gpt_oss", "deepseek_v2", "deepseek_v3", "jamba", "phimoe"})
MULTIMODAL = frozenset(
    {"gemma3", "gemma3n", "llava", "mllama", "llama4", "mistral3", "paligemma", "idefics3", "smolvlm"}
)
ENCODERS = frozenset(
    {
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
    }
    | {"roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Decoders only where their config says is_decoder."""
SEES_BOTH_WAYS = frozenset({"xlnet", "xlm", "flaubert"})
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of transformers' causal language models, as `architectures` gives them."""
QUANTIZED = ("quantization_config", "compression_config")
"""Fields of a config.json whose weights are quantized already."""
GENERATION_FILE = "generation_config.json"
BLOCKS = ("num_hidden_layers", "n_layer")
SIZES = (
    *("hidden_size", "n_embd", "intermediate_size", "n_inner", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads"),
)
"""Fields that are whole numbers from 1 on; a list, of one for each block, or null, is left to transformers."""
MAX_BLOCKS, MAX_SIZE = 10_000, 2**31 - 1
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
"""Fields that say how many tokens a base reads, transformers' portable name first."""
UNLIMITED_TOKENS = 2**31 - 1
"""Of a base that names no limit, as one that knows distances alone."""


def check_architecture(folder: Path) -> None:
    """Refuse a base by its config files alone, before anything of it is loaded.

    Code that a folder brings is never run: where transformers has the model type itself, it is ignored, which is
    logged; any other model could not be loaded without.

    Raises:
        ConfigError: the base is an adapter, made of such code, unknown to transformers, or no dense decoder at full
            precision, or has sizes that no model has; the message says which.
    """
    check_no_adapter(folder)
    values = read_values(folder / "config.json")
    model_type = str(values.get("model_type"))
    with_code = [name for name in CODE_NAMING_FILES if "auto_map" in read_values(folder / name)]
    if with_code and not _is_transformers_own(model_type):
        raise ConfigError(
            f"BASE_MODEL: {with_code[0]} in {str(folder)!r} names code to run (auto_map), and no code of a model is "
            f"ever run; model_type {model_type!r} is not one of transformers' own; choose a model that is"
        )
    check_dense(values, folder)
    check_sizes(values, folder)
    if not _is_transformers_own(model_type):
        raise ConfigError(
            f"BASE_MODEL: model_type {model_type!r} in {str(folder / 'config.json')!r} is not supported"
            f"{did_you_mean(model_type, MODEL_TYPES)}"
        )
    if with_code:
        _log_ignored_code(folder, " and ".join(with_code))


def check_dense(values: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no dense causal language model by the values of its config, transformers' defaults among them."""
    model_type = str(values.get("model_type"))
    for reason in _reasons_against(values, model_type):
        raise ConfigError(
            f"BASE_MODEL: model_type {model_type!r} in {str(folder / 'config.json')!r} {reason}; "
            "give a dense causal language model at 16 or 32 bits"
        )


def check_sizes(values: Mapping[str, Any], folder: Path) -> None:
    """Refuse sizes that no model is built from, before one is tried.

    Raises:
        ConfigError: one is no whole number from 1 on, or larger than any model's.
    """
    for names, most in ((BLOCKS, MAX_BLOCKS), (SIZES, MAX_SIZE)):
        for name in names:
            size = values.get(name)
            if size is None or isinstance(size, list) or (type(size) is int and 1 <= size <= most):
                continue
            raise ConfigError(
                f"BASE_MODEL: {name} in {str(folder / 'config.json')!r} is {size!r}; it must be a whole number from 1 "
                f"to {most:,}; bring the file again"
            )


def check_no_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter: transformers would put it on the base without a word.

    Raises:
        ConfigError: there is one; the base that it names is offered.
    """
    if not (folder / ADAPTER_FILE).is_file():
        return
    base = read_values(folder / ADAPTER_FILE).get("base_model_name_or_path")
    raise ConfigError(
        f"BASE_MODEL: {str(folder)!r} is an adapter ({ADAPTER_FILE}), not a base; "
        + (f"its base is {base!r}" if base else "give the base that it was trained on")
        + ", or merge the two first"
    )


def _reasons_against(values: Mapping[str, Any], model_type: str) -> Iterator[str]:
    """Why a model can not be adapted here, the plainest reason first; none of a dense decoder."""
    if method := quantized_by(values):
        yield f"is quantized already ({method}); a base is quantized here, at NF4, from its full weights"
    if values.get("is_encoder_decoder") is True or model_type in ENCODER_DECODERS:
        yield "is an encoder-decoder"
    if model_type in EXPERTS or "moe" in model_type.split("_") or any(_expert_counts(values)):
        yield "is a mixture of experts"
    parts = [name for name in ("vision_config", "audio_config", "text_config") if name in values]
    if parts or model_type in MULTIMODAL:
        yield f"is a vision or multimodal model{f' ({parts[0]})' if parts else ''}; its text part alone can be a base"
    if model_type in RECURRENT:
        yield "is recurrent and no transformer"
    names = values.get("architectures")
    names = names if isinstance(names, list) else []
    if model_type not in MODEL_TYPES and names and not any(str(name).endswith(CAUSAL) for name in names):
        yield f"is {names[0]}, no causal language model"
    is_encoder = model_type in ENCODERS and values.get("is_decoder") is not True
    if is_encoder or model_type in SEES_BOTH_WAYS or values.get("use_bidirectional_attention"):
        yield "is no causal language model: its attention sees the tokens that it would have to predict"


def quantized_by(values: Mapping[str, Any]) -> str | None:
    """The method that a config says its weights are quantized by; None of full weights."""
    for name in QUANTIZED:
        settings = values.get(name)
        if settings is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            return str(method or f"its {name} names no method")
    return None


def _expert_counts(values: Mapping[str, Any]) -> Iterator[bool]:
    """Whether each field of a config, nested ones too, counts more than one expert."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _expert_counts(value)
        else:
            yield "expert" in str(name) and type(value) is int and value > 1


def _is_transformers_own(model_type: str) -> bool:
    if model_type in MODEL_TYPES:
        return True
    from transformers.models.auto import auto_mappings  # a table of names; unlike its package it imports no PyTorch

    return model_type in auto_mappings.CONFIG_MAPPING_NAMES


@cached  # a sweep looks at its base more than once
def _log_ignored_code(folder: Path, files: str) -> None:
    logger.warning("base %s: the code that %s names (auto_map) is ignored; transformers' own is used", folder, files)


def read_values(path: Path) -> Mapping[str, Any]:
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
    """Tokens that the base in a folder reads at most, from its config alone; UNLIMITED_TOKENS where it names no limit.

    Raises:
        ConfigError: the field is no number.
    """
    values = read_values(folder / "config.json")
    for name in POSITIONS:
        if name in values and values[name] is not None:
            if type(values[name]) is not int:
                raise ConfigError(
                    f"BASE_MODEL: {name} in {str(folder / 'config.json')!r} is {values[name]!r}, no number"
                )
            return values[name]
    return default_context_tokens(str(values.get("model_type")))


def default_context_tokens(model_type: str) -> int:
    """What transformers takes where config.json does not say; UNLIMITED_TOKENS where it has no such field either."""
    if model_type == "None":
        return UNLIMITED_TOKENS
    from transformers import AutoConfig

    return context_of(AutoConfig.for_model(model_type))


def context_of(config: Any) -> int:
    """Tokens that a base of transformers' config reads at most."""
    for name in POSITIONS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return UNLIMITED_TOKENS
