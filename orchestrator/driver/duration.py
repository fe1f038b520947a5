"""How long a sweep will take, predicted before it starts: from shapes and from what its device was measured at."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.driver.plan import first_configs
from trainables.cost.predicted_time import Speed, published, trial_seconds
from trainables.models.families import shape_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.driver.ready import SweepDevice
    from orchestrator.settings import SweepSettings
    from trainables.cost.gpus import Gpu
    from trainables.values.config import ComputeDtype, TrialConfig

N_CONFIGS = 32
"""First configs over which a trial's time is averaged: a space mixes cheap and dear ones."""


def _file(root: Path) -> Path:
    return root / "cache" / "device_speed.json"


def keep(settings: "SweepSettings", device: "SweepDevice", root: Path) -> None:
    """Remember a device's speed, for a dry run, which must not touch it.

    It was measured in the GPU's own arithmetic: of a sweep that asks for another nothing is remembered, nor on a CPU.
    """
    if device.speed is None or settings.compute_dtype != "auto":
        return
    _file(root).parent.mkdir(parents=True, exist_ok=True)
    known = {"speed": asdict(device.speed), "compute_dtype": device.compute_dtype, "names": sorted(device.names)}
    _file(root).write_text(json.dumps(known) + "\n", encoding="utf-8")


def known(root: Path) -> "tuple[Speed, ComputeDtype] | None":
    """Speed and arithmetic of the device that the last sweep here ran on; None before the first on a GPU."""
    try:
        found = json.loads(_file(root).read_text(encoding="utf-8"))
        return Speed(**found["speed"]), found["compute_dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(settings: "SweepSettings", gpu: "Gpu | None", root: Path) -> "tuple[Speed, ComputeDtype] | None":
    """Speed and arithmetic of a sweep; None where no speed is known in the arithmetic that it asks for."""
    device, asked = (published(gpu), gpu.dtype) if gpu else known(root), settings.compute_dtype
    if device is None or asked in ("auto", device[1]):
        return device
    speed, native = device
    return (speed, asked) if (asked, native) == ("float16", "bfloat16") else None  # hardware with the latter has both


def predicted_seconds(
    settings: "SweepSettings", root: Path, n_slots: int = 1, *, gpu: "Gpu | None" = None
) -> float | None:
    """Of a search of which nothing is pruned, so that each 4-bit trial brings its baseline; None where it is not known.

    Start-up, and what the finalists need, come on top.

    Args:
        n_slots: trials at once.
        gpu: to run on, in place of the device of the last sweep here.
    """
    shape, device = shape_named(settings.base_model), _of(settings, gpu, root)
    if settings.device == "cpu" or shape is None or device is None:
        return None
    speed, dtype = device
    configs, times = searched(settings)
    return times * sum(trial_seconds(shape, config, dtype, speed) for config in configs) / n_slots


def searched(settings: "SweepSettings") -> "tuple[frozenset[TrialConfig], float]":
    """Some of the configs of a search of which nothing is pruned, with their baselines, and how many times as many as
    these it will come to."""
    configs = first_configs(settings, N_CONFIGS)
    baselines = {config.at_other_precision for config in configs if config.precision == "nf4"}
    n_looked_at = min(N_CONFIGS, settings.n_trials)
    times = settings.n_trials / n_looked_at if len(configs) == n_looked_at else 1.0  # fewer are all of the space
    return frozenset(baselines.union(configs)), times


def trials_seconds(
    settings: "SweepSettings", configs: "Sequence[TrialConfig]", root: Path, gpu: "Gpu | None" = None
) -> "list[float | None]":
    """Predicted time of each trial that is not pruned; None where it is not known, as on a CPU."""
    shape, device = shape_named(settings.base_model), _of(settings, gpu, root)
    if settings.device == "cpu" or shape is None or device is None:
        return [None] * len(configs)
    speed, dtype = device
    return [trial_seconds(shape, config, dtype, speed) for config in configs]


def text(settings: "SweepSettings", root: Path, n_slots: int = 1, *, gpu: "Gpu | None" = None) -> str | None:
    """One line about it, None where nothing is known."""
    seconds = predicted_seconds(settings, root, n_slots, gpu=gpu)
    if seconds is None:
        return None
    size = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"
    at_once = f" with {n_slots} at once" if n_slots > 1 else ""
    limit = settings.max_hours
    sooner = f"; max_hours ({limit:g}) ends it sooner" if limit is not None and 3600 * limit < seconds else ""
    on_top = "start-up and seed replicates come on top"
    return f"predicted time: about {size} of search{at_once} if nothing is pruned{sooner}; {on_top}"
