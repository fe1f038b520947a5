"""Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934), as Ray Tune has it, over the held-out loss."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from orchestrator.pruning.hypervolume import first_rung

if TYPE_CHECKING:
    from search_spaces import EarlyTerminate
    from trainables.values.results import Cost, Measurement, TrialResult


class Asha:
    """At each rung a trial goes on when its loss is in the best 1 / eta of those seen there so far.

    It knows one objective: of a front over several it keeps less than HypervolumeStop does.
    """

    def __init__(self, asked: "EarlyTerminate", max_steps: int) -> None:
        self._eta = asked.eta
        self._seen: dict[str, SimpleNamespace] = {}
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="step",
            metric="eval_loss_nats",
            mode="min",
            grace_period=first_rung(asked, max_steps),
            max_t=max_steps + 1,  # the worker ends a full trial itself
            reduction_factor=asked.eta,
        )

    def learn(self, trial: "TrialResult") -> None:
        for measurement in trial.history if trial.cost else ():
            self.at_rung(trial.key, measurement, trial.cost, may_stop=False)

    def at_rung(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        if key not in self._seen:
            self._seen[key] = SimpleNamespace(trial_id=key)  # all of a Tune trial that the scheduler looks at
            self._scheduler.on_trial_add(None, self._seen[key])
        result = {"step": measurement.step, "eval_loss_nats": measurement.eval_loss_nats}
        decision = self._scheduler.on_trial_result(None, self._seen[key], result)
        if decision != TrialScheduler.STOP or not may_stop:
            return None
        return (
            f"ASHA: held-out loss {measurement.eval_loss_nats:.4f} nats at step {measurement.step} "
            f"is not in the best {1 / self._eta:.0%} there"
        )

    def at_end(self, key: str, measurement: "Measurement", cost: "Cost", *, may_stop: bool) -> str | None:
        return None
