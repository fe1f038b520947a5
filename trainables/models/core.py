"""The transformers model under an adapter: the tokens that end and fill up its rows, and its checkpointing."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel
    from transformers import PreTrainedModel


def core_of(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """The transformers model itself, without peft's wrapper where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def set_checkpointing(model: "PreTrainedModel", wanted: bool) -> None:
    """Let a model in training mode keep only the input of each block, and run its forward pass again when needed.

    No random state is kept for that: what a trial draws follows from counters, see trainables.models.dropout_mask.
    """
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before transformers 5.23
    if wanted:
        kwargs = {"use_reentrant": False, "preserve_rng_state": False}
        getattr(model, f"{name}_checkpointing_enable")(kwargs)
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()


@contextmanager
def attention_by(core: "PreTrainedModel", name: str) -> "Iterator[None]":
    """Inside, a model attends by the function that was registered with transformers under a name."""
    stock = core.config._attn_implementation
    core.config._attn_implementation = name
    try:
        yield
    finally:
        core.config._attn_implementation = stock


def end_tokens(model: "PreTrainedModel | PeftModel") -> tuple[int, ...]:
    """The tokens that end a text, as generation_config.json and config.json name them; empty where they name none."""
    core = core_of(model)
    ends: list[int] = []
    for config in (core.config, core.generation_config):
        named = getattr(config, "eos_token_id", None)
        for token in named if isinstance(named, list | tuple) else [named]:
            if token is not None and token not in ends:
                ends.append(token)
    return tuple(ends)


def padding_token(model: "PreTrainedModel | PeftModel") -> int:
    """What rows are filled up with on the right, where causal attention never looks: an end token, or token 0."""
    return next(iter(end_tokens(model)), 0)
