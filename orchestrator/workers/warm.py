"""Workers that stay: each keeps the base model on its device from its first task to the sweep's end.

Ray Tune gives a worker whose trial has ended to any trial that asks for equal resources. To one whose own worker is
still starting, too, which is given up then: where trials are shorter than a worker's start, most of a cluster never
gets one. And of several workers whose trials end at once it keeps a single one. So workers have numbers, which are
part of what a task asks for: a task goes to the idle worker of its number, or waits for a new one that no other
task is given; and Tune is told to keep one worker of each number.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ray.tune import PlacementGroupFactory

NODE_ID = "ray.io/node-id"
"""Ray's own label of each node."""

START_SECONDS = 15.0
"""What has not started for longer has no place to."""
ASKED_SECONDS = 2.0
"""Within so long Tune asks Ray for a process that has a place."""
IDLE_SECONDS = 60.0
"""What is idle for longer is given up, so that a cluster may do without its node."""


class WorkerResources(PlacementGroupFactory):
    """What Ray is asked for a worker; equal only to what the worker of the same number was asked for with.

    Attributes:
        number: of the worker.
    """

    def __init__(self, number: int, bundle: Mapping[str, float], avoided: Sequence[str] = ()) -> None:
        """
        Args:
            bundle: resources by Ray's names.
            avoided: ids of nodes where it may not run.
        """
        self.number = number
        selector = [{NODE_ID: f"!in({','.join(avoided)})"}] if avoided else None
        super().__init__([dict(bundle)], bundle_label_selector=selector)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerResources) and self.number == other.number and super().__eq__(other)

    def __hash__(self) -> int:
        return hash((self.number, super().__hash__()))


def resources_of(config: Mapping[str, Any]) -> WorkerResources:
    """What the worker of a task's Tune config is asked for with, see `Workers.take`."""
    worker = config["worker"]
    return _wanted(worker["number"], tuple(worker["bundle"].items()), tuple(worker["avoided"]))


@lru_cache(maxsize=1024)
def _wanted(number: int, bundle: tuple[tuple[str, float], ...], avoided: tuple[str, ...]) -> WorkerResources:
    """One for all tasks of a worker: Tune keeps it with each of them to the sweep's end."""
    return WorkerResources(number, dict(bundle), avoided)


class Workers:
    """Which worker a task goes to, and which of them Tune keeps."""

    def __init__(
        self,
        resources: Mapping[str, float],
        avoided: Sequence[str] = (),
        *,
        lost: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            resources: of each, see SweepSettings.resources.
            avoided: ids of nodes where no more may start; looked at again for each new one.
            lost: called when one was lost, perhaps with its node.
        """
        self._bundle = {name.upper() if name in ("cpu", "gpu") else name: share for name, share in resources.items()}
        self._avoided = avoided
        self._lost = lost
        self._clock = clock
        self._n_begun = 0
        self._idle: list[tuple[float, dict[str, Any]]] = []  # since when; the last one comes last
        self._at_work: dict[str, dict[str, Any]] = {}
        self._waiting_since: dict[str, float] = {}
        self._kept: set[int] = set()
        self._cache: Any = None
        self._actors: Any = None

    def take(self, trial_id: str) -> dict[str, Any]:
        """The worker of a Tune trial, as its config names it: of the idle ones the last that worked, else a new one."""
        if self._idle:
            _, worker = self._idle.pop()
        else:
            worker = {"number": self._n_begun, "bundle": self._bundle, "avoided": list(self._avoided)}
            self._n_begun += 1
        self._at_work[trial_id] = worker
        self._waiting_since[trial_id] = self._clock()
        return worker

    @property
    def has_idle(self) -> bool:
        """Whether one waits for a task."""
        return bool(self._idle)

    def are_asked_for(self) -> bool:
        """Whether Ray was asked for the processes of all that have a task: it starts them without this process now.

        Also where it could not be asked for a while, as they have no place.
        """
        since = max(self._waiting_since.values(), default=-math.inf)
        n_asked = self._actors.num_live_actors if self._actors else 0  # of Tune's: those that Ray was asked for
        return n_asked >= len(self._waiting_since) or self._clock() - since > ASKED_SECONDS

    def began(self, trial_id: str) -> None:
        """The worker is there, and has taken up its task."""
        self._waiting_since.pop(trial_id, None)

    def give_back(self, trial_id: str, *, lost: bool) -> None:
        """A Tune trial has ended; whether its worker was lost with it."""
        worker = self._at_work.pop(trial_id)
        self._waiting_since.pop(trial_id, None)
        if lost:
            self._lost()
        else:
            self._idle.append((self._clock(), worker))

    def make_room(self) -> None:
        """There is no task for the idle workers: give up those whose place is wanted, or that were idle for long."""
        now = self._clock()
        n_wanted = sum(now - since > START_SECONDS for since in self._waiting_since.values())
        while self._idle and (n_wanted > 0 or now - self._idle[0][0] > IDLE_SECONDS):
            n_wanted -= 1
            _, worker = self._idle.pop(0)
            if worker["number"] in self._kept:
                self._cache.decrease_max(resources_of({"worker": worker}))

    def end(self) -> None:
        """Kill all: an interrupt leaves them to Tune's objects, which who looks at its traceback keeps."""
        if self._actors:
            self._actors.cleanup()

    def keep(self, tune_controller: Any, trial: Any) -> None:
        """Have Tune keep the worker of a trial's number while it is idle; Tune has no setting for it."""
        controller, wanted = tune_controller._tune_controller, trial.placement_group_factory
        self._cache, self._actors = controller._actor_cache, controller._actor_manager
        if wanted.number not in self._kept:
            self._kept.add(wanted.number)
            self._cache.increase_max(wanted)
