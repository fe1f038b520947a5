"""Which running trial is stopped early, as a Ray Tune scheduler."""

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.tune_trainable import Task
from search_spaces import EarlyTerminate
from trainables.config import rungs


class Pruner(FIFOScheduler):
    """Ray's ASHA on held-out loss (Li et al. 2018, arXiv:1810.05934), which spares what a pair needs.

    At each rung a trial goes on when its loss is in the best 1 / eta of those seen there so far.
    Comparisons, judgements and protected trials (twins of completed 4-bit trials, repeats) are never stopped.
    """

    def __init__(self, rule: EarlyTerminate, max_steps: int) -> None:
        super().__init__()
        self._rule = rule
        self.protected: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._asha = None
        if rule.type == "asha":
            self._asha = AsyncHyperBandScheduler(
                time_attr="step",
                metric="eval_loss_nats",
                mode="min",
                grace_period=next(rung for rung in rungs(max_steps) if rung >= rule.min_share * max_steps),
                max_t=max_steps + 1,  # the worker ends a full trial itself
                reduction_factor=self._rule.eta,
            )

    def reason(self, key: str) -> str:
        """Why a trial was stopped, for the ledger."""
        return self._reasons.get(key, "stopped by Ray Tune")

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._asha:
            self._asha.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        task = Task.from_dict(trial.config["task"])
        if self._asha is None or task.kind != "train" or result.get("done") or "step" not in result:
            return TrialScheduler.CONTINUE
        decision = self._asha.on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.STOP or task.key in self.protected:
            return TrialScheduler.CONTINUE
        self._reasons[task.key] = (
            f"ASHA: held-out loss {result['eval_loss_nats']:.4f} nats at step {result['step']} "
            f"is not in the best {1 / self._rule.eta:.0%} there"
        )
        return decision

    def __deepcopy__(self, memo: dict) -> "Pruner":
        return self  # the recorder and the searcher speak with this one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's own snapshot is not used
