"""From what the user said, and what the machine is, to settings; and what they would run first."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import search_spaces
from orchestrator import settings as settings_file
from orchestrator.driver import warm_start
from orchestrator.security.addresses import refuse_secrets
from orchestrator.settings import SweepSettings
from trainables.cost.device import count_gpus
from trainables.cost.predicted_memory import predicted_peak_mib
from trainables.data import rows
from trainables.data.formats import parse_columns
from trainables.data.splits import split_rows
from trainables.models import base_model
from trainables.models.families import shape_named
from trainables.values.config import ComputeDtype, TrialConfig
from trainables.values.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

GPU_DEFAULTS = {
    "space": "pareto",
    "trials": 32,
    "base_model": "openai-community/gpt2-medium",
    "data": "tatsu-lab/alpaca",
}
AUTO = {"cuda": {"engine": "graph", "loop": "lean"}, "cpu": {"engine": "eager", "loop": "standard"}}
"""What is fastest on a device; on a CPU nothing is gained over a stock script's loop."""
DEMO_DEFAULTS = {"space": "demo", "trials": 12, "base_model": "demo", "data": "demo"}


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
    if given.get("address") is not None:
        refuse_secrets("address", given["address"])  # what does not answer there is said with its address
    if chosen["space"] is not None:
        search_spaces.load(chosen["space"])  # a wrong name is said before anything is looked at
    if chosen["base_model"] is not None:
        base_model.local_folder(chosen["base_model"])  # so is a base that cannot be used
    if device is None:
        device = "cuda" if _gpu_in_reach(given.get("address"), insecure=bool(given.get("insecure"))) else "cpu"
    if device == "cpu" and "gpus_per_trial" in given:
        raise ConfigError(f"gpus_per_trial is {given['gpus_per_trial']:g}, but there are 0 GPUs in reach")
    defaults = defaults_for(device, chosen["base_model"])
    values = {key: value if value is not None else defaults.get(key) for key, value in chosen.items()}
    space = search_spaces.load(values["space"])
    if values.get("sampler") is not None:
        space = _sampled_by(space, values["sampler"])
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
        **{**given, **steps},
    )
    _check_known_lengths(settings)
    warm_start.check(settings, settings_file.ROOT)
    if device == "cpu" and chosen["base_model"] is None:
        logger.info(
            "No GPU here: this is the demo, a tiny GPT-2 on made-up rows. On a GPU the same command tunes "
            "GPT-2 Medium on Alpaca: space %s, %s trials of 200 steps.",
            GPU_DEFAULTS["space"],
            GPU_DEFAULTS["trials"],
        )
    return settings


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


def _check_known_lengths(settings: SweepSettings) -> None:
    folder = base_model.local_folder(settings.base_model)
    if folder is not None:
        check_lengths(settings, base_model.context_tokens(folder))
    elif shape := shape_named(settings.base_model):
        check_lengths(settings, shape.n_positions)


def check_rows(settings: SweepSettings) -> None:
    """Check the rows of a local file as `run` does; one line says what only the hub could tell.

    Raises:
        DataError: see trainables.data.rows.read_rows, or there are too few rows.
    """
    on_hub = []
    if base_model.local_folder(settings.base_model) is None:
        on_hub.append(f"base model {settings.base_model}")
    if rows.local_file(settings.data) is None:
        on_hub.append(f"data {settings.data}")
    else:
        columns = parse_columns(settings.columns)
        split_rows(rows.read_rows(settings.data, split=settings.data_split, columns=columns).rows)
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


def _sampled_by(space: search_spaces.Space, sampler: str) -> search_spaces.Space:
    methods = get_args(search_spaces.Method)
    if sampler not in methods:
        raise ConfigError(f"sampler: no sampler {sampler!r}{did_you_mean(sampler, methods)}")
    return search_spaces.parse(space.model_dump() | {"method": sampler}, source="sampler")


def _gpu_in_reach(address: str | None, *, insecure: bool) -> bool:
    if address is None:
        return count_gpus() > 0
    from orchestrator.cluster import ray_cluster

    ray_cluster.connect(address, insecure=insecure)
    if not ray_cluster.has_gpu():
        raise ConfigError(f"ADDRESS: the cluster at {address!r} has no GPU; to run on its CPUs say --device cpu")
    return True


def predicted_peaks_mib(settings: SweepSettings, configs: Sequence[TrialConfig]) -> list[float | None]:
    """Peak memory of each config on a GPU, from shapes alone; None where the base's shape is not known here."""
    shape = shape_named(settings.base_model)
    if shape is None or settings.device == "cpu":
        return [None] * len(configs)
    dtype: ComputeDtype = "bfloat16" if settings.compute_dtype == "auto" else settings.compute_dtype
    return [predicted_peak_mib(shape, config, dtype) for config in configs]


def first_configs(settings: SweepSettings, n_configs: int) -> list[TrialConfig]:
    """The configs that the sweep would start with, as far as they do not depend on results."""
    from orchestrator.search.proposer import Proposer

    proposer = Proposer(settings)
    seen: dict[str, TrialConfig] = {}

    def key_of(params: Mapping[str, Any]) -> str:
        return str(settings.config(dict(params)))

    while len(seen) < min(n_configs, settings.n_trials):
        params = proposer.propose(key_of, seen.__contains__)
        if params is None:
            break
        seen[key_of(params)] = settings.config(params)
    return list(seen.values())
