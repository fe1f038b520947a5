"""What a tuned model does on held-out rows: loss, greedy text, pooled hidden states.

Every length here is a constant of the measurement protocol, not of the trial.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data.tokens import HELD_OUT_TOKENS, IGNORE, TokenRow, pad
from trainables.evaluation.decoding import greedy_texts
from trainables.models import next_token
from trainables.models.architecture import context_of
from trainables.models.chunked_loss import supervised
from trainables.models.core import core_of, end_tokens, padding_token
from trainables.models.families import family_of_model
from trainables.models.families.generic import sizes_of
from trainables.models.head import logits_of
from trainables.models.lean import lean_modules
from trainables.models.padding_free import FlatRows, hidden_states, serves

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

EVAL_LENGTH_TOKENS = HELD_OUT_TOKENS
"""Held-out rows keep their first so many tokens, or as many as the base has positions."""
N_DECODED_ROWS = 64
MAX_NEW_TOKENS = 64
BATCH_TOKENS: Mapping[str, int] = {"cuda": 8192, "cpu": 2048}
"""A batch on each kind of device, padding included; on a CPU one that fits its caches is faster."""
BATCH_SHARE = 1 / 64
"""Of a GPU's memory, for all that the linear modules of a block make of a batch."""
HEAD_TOKENS = 1024
"""Tokens whose logits exist at once."""


def eval_length(model: "PreTrainedModel | PeftModel") -> int:
    """Tokens of a held-out row that this base reads."""
    return min(EVAL_LENGTH_TOKENS, context_of(model.config))


def batch_tokens(base: "PreTrainedModel") -> int:
    """Tokens of a batch on the base's device; more than BATCH_TOKENS where rows need no padding."""
    usual, device = BATCH_TOKENS[base.device.type], base.device
    if device.type == "cpu" or not serves(base):
        return usual
    family = family_of_model(base)
    width = sum(sizes_of(module)[1] for module in family.modules_in(family.blocks_of(base)[0]).values())
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(usual, int(BATCH_SHARE * memory / (width * base.dtype.itemsize)))


def grouped_by_length(lengths: Sequence[int], n_tokens: int) -> list[list[int]]:
    """Indices of rows in batches of at most `n_tokens`, the shortest rows first, so that little is padding.

    A longer row is a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > n_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _padded_groups(
    base: "PreTrainedModel", rows: Sequence[TokenRow], length: int, n_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Rows of about equal length in one batch: their indices, input_ids and labels, both (n, at most `length`)."""
    lengths = [min(len(row.input_ids), length) for row in rows]
    for group in grouped_by_length(lengths, n_tokens):
        batch = [rows[i] for i in group]
        yield group, *pad(batch, max_length_tokens=length, pad_id=padding_token(base))


@torch.no_grad()
def response_states(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> torch.Tensor:
    """The state after the final norm at each position that predicts a response or end token.

    Returns:
        (n_response_tokens, width) on the model's device, row by row in the order of `rows`, tokens in
        their order; `response_tokens` gives the tokens they predict.
    """
    model.eval()
    return states_of(model, eval_batches(core_of(model), rows))


def response_tokens(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> list[list[int]]:
    """The response and end tokens of each row that `response_states` has a state for."""
    return [row.first(eval_length(model)).predicted_tokens for row in rows]


@torch.no_grad()
def token_losses(
    model: "PreTrainedModel | PeftModel", states: torch.Tensor, tokens: Sequence[int]
) -> NDArray[np.float64]:
    """Cross-entropy in nats of each token given the state that predicts it: (n_tokens,)."""
    targets = torch.tensor(tokens).to(states.device)
    return torch.cat(list(_nats(core_of(model), states, targets))).double().cpu().numpy()


def _nats(core: "PreTrainedModel", states: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cross-entropy of each target, HEAD_TOKENS of them at a time."""
    for chunk, chunk_targets in zip(states.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True):
        yield next_token.token_nats(logits_of(core, chunk), chunk_targets)


@torch.no_grad()
def divergence(
    model: "PreTrainedModel | PeftModel", ours: torch.Tensor, reference: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Compare two models' next-token distributions token by token.

    Both models have the same head, which is never quantized nor tuned: a state determines its distribution.

    Args:
        model: gives the head; either of the two.
        ours, reference: (n_tokens, width), from `response_states` of the same rows.
    Returns:
        KL(reference || ours) in nats and whether the most likely token is the same, both (n_tokens,).
    """
    core = core_of(model)
    head = core.get_output_embeddings().weight
    kl, same_top1 = [], []
    for chunks in zip(ours.split(HEAD_TOKENS), reference.split(HEAD_TOKENS), strict=True):
        a, b = (logits_of(core, states.to(head.dtype)) for states in chunks)
        chunk_kl, chunk_same = next_token.divergence(a, b, len(head))
        kl.append(chunk_kl)
        same_top1.append(chunk_same)
    return torch.cat(kl).double().cpu().numpy(), torch.cat(same_top1).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatch:
    """Rows of about equal length, on the device.

    Attributes:
        input_ids: (rows, length), or (tokens,) as `flat` says.
        positions, targets: (n,), as from trainables.models.chunked_loss.supervised.
        flat: of rows that lie one after the other, where the base reads them so.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    flat: FlatRows | None

    @classmethod
    def of(cls, base: "PreTrainedModel", input_ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]) -> Self:
        """Of padded rows on the host."""
        positions, targets = supervised(labels)
        flat, device = FlatRows.on_host(lengths) if serves(base) else None, base.device
        if flat is not None:
            input_ids, positions = flat.taken(input_ids), flat.found(positions, input_ids.shape[1])
            flat = flat.to(device)
        return cls(
            input_ids=input_ids.to(device), positions=positions.to(device), targets=targets.to(device), flat=flat
        )

    def states(self, model: "PreTrainedModel | PeftModel") -> torch.Tensor:
        """The state after the final norm that predicts each target: (n, width)."""
        with lean_modules(model):
            return hidden_states(core_of(model), self.input_ids, self.flat).index_select(0, self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatches:
    """Held-out rows in batches on the device.

    Attributes:
        batches: all rows, the shortest first.
        order: (n_tokens,), index of each target among the targets of all batches; puts them row by row, in the order
            in which the rows were given.
    """

    batches: tuple[EvalBatch, ...]
    order: torch.Tensor

    @property
    def n_tokens(self) -> int:
        """Targets of all batches."""
        return len(self.order)


def eval_batches(base: "PreTrainedModel", rows: Sequence[TokenRow]) -> EvalBatches:
    """Put rows on the base's device, those of about equal length in one batch."""
    batches: list[EvalBatch] = []
    indices: dict[int, torch.Tensor] = {}  # row -> its targets among those of all batches
    n_before = 0
    length = eval_length(base)
    for group, input_ids, labels in _padded_groups(base, rows, length, batch_tokens(base)):
        lengths = [len(rows[i].first(length).input_ids) for i in group]
        batches.append(EvalBatch.of(base, input_ids, labels, lengths))
        for i, n_tokens in zip(group, (labels[:, 1:] != IGNORE).sum(dim=1).tolist(), strict=True):
            indices[i] = torch.arange(n_before, n_before + n_tokens)
            n_before += n_tokens
    order = torch.cat([indices[i] for i in range(len(rows))])
    return EvalBatches(batches=tuple(batches), order=order.to(base.device))


@torch.no_grad()
def states_of(model: "PreTrainedModel | PeftModel", rows: EvalBatches) -> torch.Tensor:
    """The state after the final norm that predicts each target, (n_tokens, width), row by row."""
    return torch.cat([batch.states(model) for batch in rows.batches]).index_select(0, rows.order)


@torch.no_grad()
def mean_nats(model: "PreTrainedModel | PeftModel", rows: EvalBatches) -> torch.Tensor:
    """Token-weighted mean cross-entropy: a float64 scalar on the device, which nothing waits for.

    A token's loss is float32, their sum float64.
    """
    core = core_of(model)
    total = torch.zeros((), dtype=torch.float64, device=core.device)
    for batch in rows.batches:
        total += sum(nats.double().sum() for nats in _nats(core, batch.states(model), batch.targets))
    return total / rows.n_tokens


def eval_loss(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> float:
    """Token-weighted mean cross-entropy over response and end tokens, in nats."""
    model.eval()
    return float(mean_nats(model, eval_batches(core_of(model), rows)))


def greedy(model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow]) -> list[list[int]]:
    """Greedy continuation of each row's prompt: up to MAX_NEW_TOKENS tokens, end token included."""
    return greedy_texts(model.eval(), prompts_of(rows), n_new=MAX_NEW_TOKENS, ends=end_tokens(model))


def prompts_of(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Each row's prompt, whole, as the cut of held-out rows leaves it."""
    return [list(row.input_ids[: row.n_prompt_tokens]) for row in rows]


@torch.no_grad()
def pooled_states(
    model: "PreTrainedModel | PeftModel", rows: Sequence[TokenRow], texts: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Mean state after the final norm over the tokens of `texts`, each read after its row's prompt.

    Args:
        texts: one non-empty continuation a row.
    Returns:
        (len(rows), width).
    """
    core, continued = core_of(model.eval()), []
    for prompt, text in zip(prompts_of(rows), texts, strict=True):
        continued.append(TokenRow(input_ids=tuple(prompt) + tuple(text), n_prompt_tokens=len(prompt)))
    pooled: dict[int, torch.Tensor] = {}
    most = BATCH_TOKENS[core.device.type]
    for group, input_ids, labels in _padded_groups(core, continued, context_of(core.config), most):
        weights = (labels != IGNORE).float()
        means = mean_states(model, input_ids.to(model.device), weights.to(model.device))
        pooled |= dict(zip(group, means, strict=True))
    return torch.stack([pooled[i] for i in range(len(rows))]).cpu().numpy()


@torch.no_grad()
def mean_states(model: "PreTrainedModel | PeftModel", input_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the positions whose weight is 1: input_ids and weights (rows, length) -> (rows, width), float32."""
    with lean_modules(model):
        hidden = core_of(model).base_model(input_ids=input_ids, use_cache=False).last_hidden_state.float()
    return (hidden * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
