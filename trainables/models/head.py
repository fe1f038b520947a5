"""From states after the final norm to logits: by the head's weight where that is all, else by the model's own forward.

Some models scale their logits or cap them by a tanh, and some heads have a bias. What a family here does not know goes
through transformers' own code, never silently as a plain product.
"""

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from trainables.models.chunked_loss import ALIGNMENT, aligned_logits
from trainables.models.families import family_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


def has_plain_head(core: "PreTrainedModel") -> bool:
    """Whether logits are states times the head's weight and nothing else."""
    head = core.get_output_embeddings()
    is_capped = getattr(core.config, "final_logit_softcapping", None) is not None
    return family_of(core.config.model_type) is not None and getattr(head, "bias", None) is None and not is_capped


def logits_of(core: "PreTrainedModel", states: torch.Tensor) -> torch.Tensor:
    """Logits of states (n, width): (n, vocabulary rounded up), -inf beyond the vocabulary."""
    if has_plain_head(core):
        return aligned_logits(states, core.get_output_embeddings().weight)
    logits = own_logits(core, states)
    return F.pad(logits, (0, -logits.shape[-1] % ALIGNMENT), value=-torch.inf)


def own_logits(core: "PreTrainedModel", states: torch.Tensor) -> torch.Tensor:
    """What the model's own forward makes of states (n, width): (n, vocabulary)."""
    with ExitStack() as stack:
        for module in {core.base_model, core.get_decoder()}:  # OPT's head asks the second
            stack.enter_context(_giving(module, states[None]))
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        return core(input_ids=ids, use_cache=False).logits[0]


@contextmanager
def _giving(module: torch.nn.Module, states: torch.Tensor) -> "Iterator[None]":
    """Inside, a module returns these states whatever it is called with."""
    stock = module.__dict__.get("forward")
    module.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
    try:
        yield
    finally:
        del module.forward
        if stock is not None:
            module.forward = stock
