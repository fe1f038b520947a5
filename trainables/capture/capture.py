"""CUDA graphs of work on the bare base: capture it, lend it an adapter's matrices, recover from a failure."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.models import lora
from trainables.models.branches import branching, joined
from trainables.models.lean import adapted_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainables.values.config import TrialConfig

RANKS = (16, 64)
"""Ranks are padded up to one of these so that adapters share graphs; larger ranks get graphs of their own."""


def padded_rank(rank: int) -> int:
    """The rank that graphs are captured with for an adapter of this rank.

    >>> padded_rank(3), padded_rank(16), padded_rank(100)
    (16, 16, 100)
    """
    for padded in RANKS:
        if padded >= rank:
            return padded
    return rank


def captured(
    work: Callable[[], object], *, pool: tuple[int, int] | None = None, stream: torch.cuda.Stream | None = None
) -> torch.cuda.CUDAGraph:
    """What `work` does on the GPU, as a graph to replay; nothing is computed while it is captured.

    Whatever `work` makes libraries allocate at first use must have been allocated before, see `on_stream`.

    Args:
        pool: memory to take, from torch.cuda.graph_pool_handle; the graph's own by default.
        stream: to capture on; a stream of PyTorch's by default.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream), joined():
        work()
    return graph


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Inside, work goes to `stream`: after what the current stream has queued, and before what it queues next."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def attached_matrices(
    base: "PreTrainedModel", config: "TrialConfig", matrices: Mapping[str, torch.Tensor], scaling: torch.Tensor | float
) -> "Iterator[PeftModel]":
    """The base with an adapter made of these very tensors, to capture work on; bare again afterwards.

    Inside, the adapter's products run beside the base's.

    Args:
        config: the adapter's targets, rank and dropout.
        matrices: A and B by their names in the model, as from trainables.models.lora.fresh_matrices.
        scaling: factor on B A; a tensor can be set anew between replays.
    """
    model = lora.attach(base, config, base_name="graphs", without_weights=True)
    try:
        for name, matrix in matrices.items():
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, matrix)
        for layer in adapted_layers(model):
            layer.scaling = dict.fromkeys(layer.scaling, scaling)
        with branching(base.device):
            yield model
    finally:
        lora.detach(model)


def abandon_capture() -> None:
    """Undo what a failed capture leaves: its stream is current, and the random generator waits for its end."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    fresh = torch.Generator(device="cuda")
    torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh.graphsafe_get_state())
