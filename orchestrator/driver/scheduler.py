"""Which running trial is stopped early, as a Ray Tune scheduler."""

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.utils import flatten_dict

from orchestrator import objectives as objective_values
from orchestrator.pruning.hypervolume import HypervolumeStop
from orchestrator.pruning.moasha import Moasha, first_rung
from orchestrator.workers.faults import Fault, fault_of, fault_of_trial
from orchestrator.workers.tune_trainable import Report, Task
from orchestrator.workers.warm import Workers
from search_spaces import EarlyTerminate
from trainables.values.results import Measurement, TrialResult


class Pruner(FIFOScheduler):
    """One of the rules of early_terminate (see search_spaces.EarlyTerminate); spares what a pair needs.

    ASHA is Ray's own (Li et al. 2018, arXiv:1810.05934): at each rung a trial goes on when its loss is in the best
    1 / eta of those seen there so far.
    Comparisons, test evaluations and protected trials (baselines of completed 4-bit trials, repeats) are never stopped.
    """

    def __init__(
        self,
        rule: EarlyTerminate,
        max_steps: int,
        objectives: Sequence[str] = objective_values.DEFAULT,
        workers: Workers | None = None,
    ) -> None:
        """
        Args:
            workers: that tasks go to, under Ray Tune; only a scheduler is shown its controller.
        """
        super().__init__()
        self._workers = workers
        self._rule = rule
        self.protected: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._faults: dict[str, Fault] = {}
        rules = {"moasha": Moasha, "hypervolume": HypervolumeStop}
        self._own = rules[rule.type](rule, max_steps, objectives) if rule.type in rules else None
        self._asha = None
        if rule.type == "asha":
            self._asha = AsyncHyperBandScheduler(
                time_attr="step",
                metric="eval_loss_nats",
                mode="min",
                grace_period=first_rung(rule, max_steps),
                max_t=max_steps + 1,  # the worker ends a full trial itself
                reduction_factor=self._rule.eta,
            )

    def reason(self, key: str) -> str:
        """Why a trial was stopped, for the ledger."""
        return self._reasons.get(key, "stopped by Ray Tune")

    def fault(self, trial_id: str) -> Fault:
        """Why Ray Tune gave a task up; only a scheduler is told before the searcher is."""
        return self._faults.pop(trial_id, fault_of(None))

    def learn(self, trial: TrialResult) -> None:
        """Take in a candidate of before a resume; Ray's ASHA begins anew."""
        if self._own:
            self._own.learn(trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._workers:
            self._workers.keep(tune_controller, trial)
        if self._asha:
            self._asha.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._faults[trial.trial_id] = fault_of_trial(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        task = Task.from_dict(trial.config["task"])
        if task.kind != "train" or "step" not in result:
            return TrialScheduler.CONTINUE
        spared = task.key in self.protected
        if self._own:
            self._own.enter(task.key, *_shown(result))
            why = None if spared else self._own.why_stop(result["step"])
        else:
            why = self._beaten(tune_controller, trial, result)
        if why is None or spared:
            return TrialScheduler.CONTINUE
        self._reasons[task.key] = why
        return TrialScheduler.STOP

    def completed(self, task: Task, report: Report) -> str | None:
        """A trial trained to its end; the recorder tells, as Tune asks no scheduler about a result that is the last.

        Returns:
            Why it counts as stopped there all the same, None where it completed.
        """
        if not isinstance(self._own, HypervolumeStop):
            return None
        self._own.enter(task.key, *_shown(flatten_dict(report)))
        needs_baseline = task.config.precision == "nf4" and "similarity" not in report
        return self._own.end(may_stop=needs_baseline and task.key not in self.protected)

    def _beaten(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str | None:
        """Why ASHA stops a trial."""
        if self._asha is None or self._asha.on_trial_result(tune_controller, trial, result) != TrialScheduler.STOP:
            return None
        return (
            f"ASHA: held-out loss {result['eval_loss_nats']:.4f} nats at step {result['step']} "
            f"is not in the best {1 / self._rule.eta:.0%} there"
        )

    def __deepcopy__(self, memo: dict) -> "Pruner":
        return self  # the recorder and the searcher speak with this one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's own snapshot is not used


def _shown(result: dict[str, Any]) -> tuple[Measurement, float, str]:
    """The measurement in a result, the noise of its time, its device; Tune flattens what schedulers are given."""
    values = {name: result[f"measurement/{name}"] for name in Measurement.__dataclass_fields__}
    noise = result["cost/seconds_per_step_p90"] - result["cost/seconds_per_step_p10"]
    return Measurement(**values), noise, result["cost/device"]
