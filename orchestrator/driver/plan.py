"""From what the user said, and what the machine is, to settings; and what they would run first."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import settings as settings_file
from orchestrator.analysis.infeasible import nothing_counts
from orchestrator.cluster import ray_cluster
from orchestrator.driver import base_targets, warm_start
from orchestrator.ledger.ownership import owner_of
from orchestrator.objectives import DEFAULT, OBJECTIVES
from orchestrator.security.addresses import refuse_secrets
from orchestrator.settings import SweepSettings
from orchestrator.settings.command import command
from orchestrator.settings.space import space_named
from search_spaces import Space
from trainables.cost.device import count_gpus
from trainables.cost.predicted_memory import predicted_peak_mib
from trainables.models import base_model, inputs
from trainables.models.families import shape_in, shape_named
from trainables.models.predicted_peak import named_peak_mib
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from trainables.cost.gpus import Gpu

logger = logging.getLogger(__name__)

GPU_DEFAULTS = {
    "space": "pareto",
    "trials": 32,
    "base_model": "openai-community/gpt2-medium",
    "data": "tatsu-lab/alpaca",
}
AUTO = {"cuda": {"engine": "graph", "loop": "lean"}, "cpu": {"engine": "eager", "loop": "lean"}}
"""What is fastest on a device."""
ON_CPU = {"objectives": tuple(name for name in DEFAULT if not OBJECTIVES[name].is_timed)}
"""Time is none there: other work on the machine changes it by more than trials differ in it."""
DEMO_DEFAULTS = {"space": "demo", "trials": 12, "base_model": "demo", "data": "demo"}
DEMO_NOTICE = (
    "No GPU here: this is the demo, a tiny GPT-2 on made-up rows. On a GPU the same command tunes "
    "GPT-2 Medium on Alpaca"
)


def choose(name: str | None, device: str | None, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> SweepSettings:
    """Check what the user said, and fill the rest in for this machine or cluster.

    Args:
        chosen: space, trials, base_model and data; None where the machine decides. "sampler" may stand beside them,
            in place of the space's method.
        given: further fields of SweepSettings, only those that were said; engine and loop may be "auto".
    Raises:
        ConfigError: a value is wrong, or the cluster has no GPU and no device was said.
        Unreachable: the cluster at the given address does not answer.
    """
    chosen = {**chosen, "space": _refuse_misnamed(chosen, given)}
    if device is None:
        device = "cuda" if _gpu_in_reach(given.get("address"), insecure=bool(given.get("insecure"))) else "cpu"
    if device == "cpu" and "gpus_per_trial" in given:
        raise ConfigError(f"gpus_per_trial is {given['gpus_per_trial']:g}, but there are 0 GPUs in reach")
    defaults = defaults_for(device, chosen["base_model"])
    values = {key: value if value is not None else defaults.get(key) for key, value in chosen.items()}
    space = space_named(values["space"], values.get("sampler"))
    auto = AUTO.get(device, AUTO["cpu"])  # an unknown device is refused below
    steps = {name: auto[name] if given.get(name, "auto") == "auto" else given[name] for name in auto}
    n_trials = values["trials"]
    if chosen["trials"] is None and space.method == "grid":
        n_trials = space.n_points
    settings = settings_file.make(
        name=name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        space=space,
        n_trials=n_trials,
        base_model=values["base_model"],
        data=values["data"],
        device=device,
        **{**(ON_CPU if device == "cpu" else {}), **given, **steps},
    )
    settings = base_targets.suited(settings)
    check_known_lengths(settings)
    warm_start.check(settings, settings_file.ROOT)
    refuse_taken(settings.name, settings_file.ROOT)
    return settings


def demo_notice(settings: SweepSettings, said: Mapping[str, Any]) -> str | None:
    """What the same command does on a GPU, where the machine alone decided that the demo runs; else None.

    Args:
        said: device, `chosen` and `given` of `choose` in one; what is None or missing was not said.
    """
    if settings.device != "cpu" or any(said.get(name) is not None for name in ("device", "base_model", "data")):
        return None
    if any(said.get(name) is not None for name in ("space", "trials", "max_steps")):
        return f"{DEMO_NOTICE}."
    return f"{DEMO_NOTICE}: space {GPU_DEFAULTS['space']}, {GPU_DEFAULTS['trials']} trials of 200 steps."


def refuse_taken(name: str, root: Path) -> None:
    """Refuse a new sweep under the name of another.

    Raises:
        ConfigError: there is one, which can be gone on with, or which another process runs.
    """
    folder = settings_file.sweep_folder(name, root)
    if (process := owner_of(folder)) not in (None, os.getpid()):
        raise ConfigError(
            f"NAME: sweep {name!r} is being run by process {process or 'unknown'}; choose another NAME, or see what it "
            f"does: {command()} status {name}"
        )
    if (folder / "ledger.db").exists():
        raise ConfigError(
            f"NAME: sweep {name!r} exists; choose another NAME, or go on with it: {command()} resume {name} (with "
            "--trials N to add trials)"
        )


def _refuse_misnamed(chosen: Mapping[str, Any], given: Mapping[str, Any]) -> Space | None:
    """Refuse what is wrong in itself, before machine or cluster are looked at; returns the space, if one is said."""
    if given.get("address") is not None:
        refuse_secrets("address", given["address"])  # what does not answer there is said with its address
    space = None if chosen["space"] is None else space_named(chosen["space"])
    if chosen["base_model"] is not None:
        base_model.local_folder(chosen["base_model"])
    return space


def defaults_for(device: str | None, named_base: str | None) -> Mapping[str, Any]:
    """What is run where nothing is said; the demo's rows go with the demo's model alone."""
    defaults = GPU_DEFAULTS if device == "cuda" else DEMO_DEFAULTS
    return defaults if named_base in (None, "demo") else {**defaults, "data": GPU_DEFAULTS["data"]}


def check_lengths(settings: SweepSettings, n_positions: int) -> None:
    """Refuse, before any trial does, rows that are longer than the base has positions.

    Raises:
        ConfigError: the space may ask for such rows.
    """
    longest = max(settings.lengths_tokens)
    if longest > n_positions:
        raise ConfigError(
            f"max_length_tokens is {longest} in space {settings.space.name}, but base {settings.base_model} has "
            f"{n_positions} positions; give at most {n_positions}"
        )


def check_known_lengths(settings: SweepSettings) -> None:
    """The same of a base whose config is on this machine or known here; of others nothing is said."""
    folder = base_model.local_folder(settings.base_model)
    if folder is not None:
        check_lengths(settings, base_model.context_tokens(folder))
    elif shape := shape_named(settings.base_model):
        check_lengths(settings, shape.context_tokens)


def check_rows(settings: SweepSettings) -> None:
    """Check the rows of a local file as `run` does; one line says what only the hub could tell.

    Raises:
        DataError: see trainables.models.inputs.check_local.
    """
    on_hub = inputs.check_local(
        settings.base_model, settings.data, data_split=settings.data_split, columns=settings.columns
    )
    if on_hub:
        logger.info("not checked, as it is on the hub: %s", " and ".join(on_hub))


def need_gpu(device: str, address: str | None = None) -> None:
    """Refuse work for a GPU on a machine without one, before anything is fetched; of a cluster its nodes are asked.

    Raises:
        ConfigError: there is none here.
    """
    if device == "cuda" and address is None and not count_gpus():
        raise ConfigError(
            "device is 'cuda', but there is no GPU here (0 GPUs in reach); say --device cpu, or join a cluster that "
            "has some: run --address"
        )


def device_here(device: str | None) -> str:
    """The device that was said, or the better one of this machine: "cuda" or "cpu".

    Raises:
        ConfigError: see `need_gpu`.
    """
    need_gpu(device or "cpu")
    return "cuda" if device != "cpu" and count_gpus() else "cpu"


def _gpu_in_reach(address: str | None, *, insecure: bool) -> bool:
    if address is None:
        return count_gpus() > 0
    ray_cluster.connect(address, insecure=insecure)
    if not ray_cluster.has_gpu():
        raise ConfigError(f"ADDRESS: the cluster at {address!r} has no GPU; to run on its CPUs say --device cpu")
    return True


def predicted_peaks_mib(
    settings: SweepSettings, configs: Sequence[TrialConfig], gpu: "Gpu | None" = None
) -> list[float | None]:
    """Peak memory of each config on a GPU, from shapes alone; None where the base's shape is not known here.

    Of a sweep on a CPU, too: what the same configs need on a GPU.

    Args:
        gpu: which; by default one like an H100.
    """
    source = str(base_model.config_folder(settings.base_model) or settings.base_model)
    return [named_peak_mib(source, "cuda", settings.compute_dtype, config, gpu) for config in configs]


def why_empty(snapshot: "SweepSnapshot") -> str | None:
    """Why nothing is on a sweep's front, with the least violated config; None where something is."""
    shape = shape_in(Path(snapshot.workload.base_folder))

    def predict(config: TrialConfig) -> float | None:
        return predicted_peak_mib(shape, config, snapshot.workload.compute_dtype) if shape else None

    return nothing_counts(snapshot.trials, snapshot.settings, predict)


def without_4_bits(settings: SweepSettings) -> str | None:
    """One line where a search of both precisions is too short to come to 4 bits; None elsewhere."""
    from orchestrator.search.design import N_FIRST

    precision = settings.space.parameters.get("precision")
    is_of_both = precision is not None and {"nf4", "16bit"} <= set(precision.samples)
    if not is_of_both or settings.n_trials > N_FIRST or settings.warm_start is not None:
        return None
    if any(config.precision == "nf4" for config in first_configs(settings, settings.n_trials)):
        return None
    return (
        f"no config is at 4 bits: a search by a model begins with {N_FIRST} at 16, as each at 4 would need a baseline; "
        f"--trials {2 * N_FIRST} compares both"
    )


def first_configs(settings: SweepSettings, n_configs: int) -> list[TrialConfig]:
    """The configs that the sweep would start with, as far as they do not depend on results."""
    from orchestrator.search.proposer import Proposer

    proposer = Proposer(settings)
    seen: dict[str, TrialConfig] = {}
    baselines: set[str] = set()  # that they may bring

    def key_of(params: Mapping[str, Any]) -> str:
        return str(settings.config(dict(params)))

    while len(seen) < min(n_configs, settings.n_trials):
        place = None if settings.asynchronous else len(seen)
        params = proposer.propose(key_of, lambda key: key in seen or key in baselines, place)
        if params is None:
            break
        config = seen[key_of(params)] = settings.config(params)
        if config.precision == "nf4" and not settings.asynchronous:
            baselines.add(str(config.at_other_precision))
    return list(seen.values())
