"""One trial on one device: a config in, one Measurement a rung out, an adapter at the end.

cache = WorkerCache(workload, device="cuda")
trial = Trial(config, cache)
for measurement in trial.measurements():
    ...                              # may stop early: pruned
files = trial.adapter_files()
trial.close()
"""

import gc
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainables.models import lora
from trainables.models.architecture import context_of
from trainables.models.full_weights import dequantizing
from trainables.training.batches import Batch, full_batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.engine import Engine
from trainables.training.graph import GraphEngine
from trainables.training.step_cost import MeasuredStep
from trainables.training.step_graphs import StepGraphs
from trainables.values.checkpoint import Checkpoint
from trainables.values.config import TrialConfig, rungs
from trainables.values.errors import CaptureFailed, ConfigError, TrialFailed
from trainables.values.results import Cost, Measurement, curve_of
from trainables.worker_cache import WorkerCache

if TYPE_CHECKING:
    from peft import PeftModel

    from trainables.evaluation.held_out import EvalBatches

MIN_LOSS_SCALE = 1.0
MAX_LEAK_MIB = 2.0
"""What may stay on the device after a trial: rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """What a trial has on the device from its start until it is closed.

    Attributes:
        engine: trains the adapter.
        steps: the batches of all steps in the engine's own form.
        matrices: the adapter's A and B by their names in the model.
        model: the base with the adapter attached; None where the engine replays graphs, whose adapter is their own.
        validation: the rows that each rung is measured on.
        resident_mib: allocated on the device before the trial began.
        cost: of the config's cost key.
        fallback: why the engine is eager although a graph was asked for, else None.
    """

    engine: Engine
    steps: Sequence[Any]
    matrices: Mapping[str, torch.Tensor]
    model: "PeftModel | None"
    validation: "EvalBatches"
    resident_mib: float
    cost: Cost
    fallback: str | None


class Trial:
    """A config being trained. Owns its adapter; `close` gives the base back untouched.

    Attributes:
        config: what is trained.
        cost: of its cost key.
        fallback: why its engine is eager although a graph was asked for, else None.
    """

    def __init__(
        self, config: TrialConfig, cache: WorkerCache, *, cost: Cost | None = None, checkpoint: Checkpoint | None = None
    ) -> None:
        """
        Args:
            cache: of the worker; one trial at a time trains on each of its bases.
            cost: of this config's cost key, if it was measured before; measured here otherwise.
            checkpoint: of this config's trial, to go on from; what is measured then is what it would have measured.
        Raises:
            ConfigError: targets match no module, rows are longer than the base has positions, or the engine is "graph"
                on a CPU.
            TrialFailed: the device has too little memory (state "oom"), even for this trial alone.
        """
        self.config = config
        self._cache = cache
        self._checkpoint = checkpoint
        self._curve: tuple[tuple[int, float], ...] = ()  # of the training loss since the last measurement
        n_positions = context_of(cache.base(*config.base_form).config)
        if config.max_length_tokens > n_positions:
            raise ConfigError(f"max_length_tokens is {config.max_length_tokens}, the base has {n_positions} positions")
        self._batches = cache.batches(config)
        try:
            self._training = self._begin(cost)
        except TrialFailed as failure:
            if not self._free(failure) and config.engine != "graph":  # half an adapter may be on a base
                raise
            self._training = self._begin_alone(cost)
        self.cost = self._training.cost
        self.fallback = self._training.fallback

    def _begin_alone(self, cost: Cost | None) -> _Training:
        """Retry on an empty device; fall back to the eager engine if the graphs still do not fit."""
        for with_graphs in (True, False) if self.config.engine == "graph" else (True,):
            try:
                return self._begin(cost, with_graphs=with_graphs)
            except TrialFailed as error:
                failure = error
                self._free(error)
        raise failure

    def _free(self, failure: TrialFailed) -> bool:
        """Empty the device after a failed start; returns what WorkerCache.give_up does."""
        traceback.clear_frames(failure.__traceback__)  # their locals would keep the base, graphs and adapter alive
        return self._cache.give_up()

    def _begin(self, cost: Cost | None, *, with_graphs: bool = True) -> _Training:
        """Put an adapter and its engine on the device; measure the cost if it is not given. May raise TrialFailed."""
        # Do not bind the base to a local: the failure's traceback would keep it alive while memory is freed.
        with self._cache.oom_as_failure():
            validation = self._cache.held_out(self.config.base_form)
            graphs, fallback = self._graphs(cost) if with_graphs else (None, "no memory for captured steps")
            if cost and graphs is None:
                self._cache.make_room(cost, self.config.base_form)
            resident_mib = self._cache.allocated_mib()
            cost = cost or self._measured_cost(graphs)
            if graphs:  # the adapter is a part of the graphs: it need not be attached
                model, matrices = None, self._cache.fresh_matrices(self.config)
                steps = self._batches.packed(self.config.loop)
                engine = GraphEngine(matrices.values(), self.config, graphs)
            else:
                model = self._attached()
                matrices, steps = lora.matrices_of(model), self._batches.batches
                engine = EagerEngine(
                    model, self.config, compute_dtype=self._cache.workload.compute_dtype, device=self._cache.device
                )
            return _Training(
                engine=engine,
                steps=steps,
                matrices=matrices,
                model=model,
                validation=validation,
                resident_mib=resident_mib,
                cost=cost,
                fallback=fallback,
            )

    def _graphs(self, cost: Cost | None) -> tuple[StepGraphs | None, str | None]:
        """CUDA graphs of all steps where the config asks for them, else None; and why they cannot be captured.

        Args:
            cost: where None, with the step that is timed for it.
        """
        if self.config.engine != "graph":
            return None, None
        if self._cache.device != "cuda":
            raise ConfigError("engine is graph, which needs a CUDA GPU; on a CPU it is eager")
        timed = [] if cost else [packed(self._full_batch(), self.config.loop)[0]]
        shapes = [shape for shape, _ in self._batches.packed(self.config.loop)]
        try:
            return self._cache.graphs(self.config, shapes, timed), None
        except CaptureFailed as error:
            return None, str(error)

    def _attached(self) -> "PeftModel":
        """The base with a fresh adapter."""
        base = self._cache.base(*self.config.base_form)
        return lora.attach(base, self.config, base_name=self._cache.workload.base_model)

    def _full_batch(self) -> Batch:
        return full_batch(self.config, self._cache.base(*self.config.base_form).config.vocab_size)

    def _measured_cost(self, graphs: StepGraphs | None) -> Cost:
        """Memory and time of full batches on a throw-away adapter."""
        cache, config, batch = self._cache, self.config, self._full_batch()
        others_mib = cache.others_mib(config.base_form)
        given = {"graphs": graphs, "compute_dtype": cache.workload.compute_dtype, "device": cache.device}
        with dequantizing(cache.base(*config.base_form)):
            with cache.working("cost key"):
                model = self._attached()
            try:
                with cache.working("cost key"):
                    if graphs:  # whose trial begins with the same matrices, attached to nothing
                        cache.fresh_adapters.keep(config, model)
                    step = MeasuredStep(model, config, batch, **given)
                with cache.measuring():
                    seconds = step.seconds()
                with cache.working("cost key"):
                    return step.cost(seconds, others_mib)
            finally:
                lora.detach(model)

    def measurements(
        self, at: Sequence[int] = (), passed: Callable[[int], object] = lambda step: None
    ) -> Iterator[Measurement]:
        """Train to each rung in turn, from the checkpoint on if there is one; yields its Measurement.

        Args:
            at: the rungs that are measured, the last among them; without them, all are.
            passed: called at each of the others, where a checkpoint can be taken.
        Raises:
            TrialFailed: loss or gradient is not finite ("diverged"), or memory ran out ("oom").
            ValueError: the checkpoint is of an adapter of another size.
        """
        n_done = self._restore() if self._checkpoint else 0
        for step in rungs(self.config.max_steps):
            if step <= n_done:
                continue
            with self._cache.working("training"), self._cache.oom_as_failure():
                # Bind neither losses nor engine to a local: CPython 3.12 keeps a closed generator's locals alive.
                measurement = self._measure(step, self._training.engine.run(self._training.steps[n_done:step]), at)
            n_done = step
            if measurement is None:
                passed(step)
            else:
                yield measurement

    def _restore(self) -> int:
        """Go on from the checkpoint; returns the number of steps done by then."""
        checkpoint, self._checkpoint = self._checkpoint, None
        self._training.engine.restore(checkpoint.engine)
        self._curve = checkpoint.curve
        return checkpoint.step

    def checkpoint(self, step: int, *, seconds: float) -> Checkpoint:
        """What another Trial of this config can go on from; to be taken at a rung.

        Args:
            step: of the rung.
            seconds: of training until then.
        """
        return Checkpoint(
            key=self._cache.workload.key(self.config),
            step=step,
            seconds=seconds,
            curve=self._curve,
            engine=self._training.engine.state(),
        )

    def _measure(self, step: int, losses: torch.Tensor, at: Sequence[int]) -> Measurement | None:
        """The Measurement of a rung; None of one that is not to be measured: the held-out rows are not read.

        Args:
            step: steps done.
            losses: (n,), training losses of the steps since the last rung.
            at: see `measurements`.
        Raises:
            TrialFailed: a loss is not finite ("diverged").
        """
        # Do not bind the engine to a local: a failure's traceback would keep it alive when the trial is closed.
        is_asked, validation = not at or step in at, self._training.validation
        eval_loss = self._training.engine.eval_loss(validation) if is_asked else 0.0  # first: right behind the steps
        train_loss = float(losses.mean())
        if not (math.isfinite(train_loss) and math.isfinite(eval_loss)):
            raise TrialFailed("diverged", self._not_finite(step, losses, eval_loss))
        if self._training.engine.loss_scale < MIN_LOSS_SCALE:  # float16 skips such steps: the loss alone would not tell
            n_bad = int(self._training.engine.n_bad_gradients)
            raise TrialFailed("diverged", f"not finite by step {step}: gradients in {n_bad} steps, at any loss scale")
        self._curve += curve_of(losses.tolist(), step)
        if not is_asked:
            return None
        curve, self._curve = self._curve, ()
        return Measurement(step=step, train_loss_nats=train_loss, eval_loss_nats=eval_loss, train_curve=curve)

    def _not_finite(self, step: int, losses: torch.Tensor, eval_loss: float) -> str:
        """Says which figure is not finite, and since which step."""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        first = f"training loss from step {step - len(losses) + bad[0] + 1}" if bad else f"held-out loss {eval_loss}"
        n_gradients = int(self._training.engine.n_bad_gradients)
        return f"not finite at step {step}: {first}; gradients in {n_gradients} steps so far"

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as it is now, as peft's files by name."""
        workload = self._cache.workload
        base = {"base_name": workload.base_model, "commit": workload.base_commit}
        return lora.to_files(self.config, self._training.matrices, **base)

    def close(self) -> None:
        """Take the adapter off the base and free it; the trial cannot be used afterwards.

        Raises:
            RuntimeError: more than MAX_LEAK_MIB stay on the device; the next trial's figures would be wrong.
        """
        resident_mib = self._training.resident_mib
        if self._training.model is not None:
            lora.detach(self._training.model)
        del self._training
        leak_mib = self._cache.allocated_mib() - resident_mib
        if leak_mib > MAX_LEAK_MIB:
            gc.collect()
            leak_mib = self._cache.allocated_mib() - resident_mib
        if leak_mib > MAX_LEAK_MIB:
            raise RuntimeError(f"{leak_mib:.1f} MiB stay on the device after a trial (at most {MAX_LEAK_MIB:g})")
