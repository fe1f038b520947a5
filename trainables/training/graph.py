"""The graph engine: one trial trained by replaying CUDA graphs that serve many."""

from collections.abc import Iterable, Sequence

import torch

from trainables.evaluation.held_out import EvalBatches
from trainables.training.batches import GraphInput
from trainables.training.schedule import rate_at
from trainables.training.step_graphs import StepGraphs
from trainables.values.checkpoint import EngineState
from trainables.values.config import TrialConfig


class GraphEngine:
    """Trains one adapter by replaying StepGraphs; the Engine for CUDA GPUs.

    Attributes:
        parameters: the trial's own weights.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], config: TrialConfig, graphs: StepGraphs) -> None:
        """
        Args:
            matrices: of a fresh adapter, in the order in which peft attaches them; attached to nothing.
            graphs: with the config's key, every shape captured that `run` will see; no other engine may use them
                until this one is done.
        """
        self.parameters = list(matrices)
        self._graphs = graphs
        self._config, self._n_steps = config, 0
        graphs.load(config, self.parameters)

    @property
    def n_bad_gradients(self) -> torch.Tensor:
        """See Engine."""
        return self._graphs.n_bad_gradients

    @property
    def loss_scale(self) -> float:
        """See Engine."""
        return self._graphs.loss_scale

    def state(self) -> EngineState:
        """See Engine."""
        return self._graphs.state(self.parameters)

    def restore(self, state: EngineState) -> None:
        """See Engine."""
        self._graphs.restore(state, self.parameters)
        self._n_steps = state.n_steps
        self._graphs.store(self.parameters)

    def eval_loss(self, rows: EvalBatches) -> float:
        """See Engine; the rows must be those of the graphs."""
        assert rows is self._graphs.eval_batches
        self._graphs.evaluate()
        return float(self._graphs.eval_loss_nats)

    def run(self, steps: Sequence[GraphInput]) -> torch.Tensor:
        """One step a packed batch, see Engine."""
        inputs = torch.cat([vector for _, vector in steps]).pin_memory().to("cuda", non_blocking=True)
        rates = self._rates(len(steps)).pin_memory().to("cuda", non_blocking=True)
        losses = torch.empty(len(steps), device="cuda")
        vectors = inputs.split([len(vector) for _, vector in steps])
        for i, ((shape, _), vector) in enumerate(zip(steps, vectors, strict=True)):
            self._graphs.replay(shape, vector, rates[i])
            losses[i] = self._graphs.loss_nats
        self._graphs.store(self.parameters)
        self._n_steps += len(steps)
        return losses

    def _rates(self, n_steps: int) -> torch.Tensor:
        """The learning rates of the next steps, (n_steps,), on the host."""
        coming = range(self._n_steps, self._n_steps + n_steps)
        return torch.tensor([rate_at(self._config, step) for step in coming])
