"""`run`: a new sweep."""

import logging
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.analysis.status import to_come
from orchestrator.cli.lines import folded
from orchestrator.cli.options import AsJson, with_settings
from orchestrator.cli.output import print_json, print_text
from orchestrator.cli.plan_table import excess_line, fits_of, fixed_line, missing_lines, plan_table
from orchestrator.driver import base_targets, disk, duration, plan
from orchestrator.settings import ROOT, SweepSettings
from trainables.cost.gpus import Gpu, gpu_named
from trainables.values.errors import ConfigError
from trainables.values.workload import data_caption

logger = logging.getLogger(__name__)


@with_settings
def run(
    given: dict[str, Any],
    sampler: Annotated[
        str | None, typer.Option(help="tpe, nsga2, gp, random, qmc or grid; default: the space's method")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan; touch neither GPU nor network")] = False,
    gpu: Annotated[str | None, typer.Option(help="with --dry-run: the plan for this GPU, e.g. T4 or H100")] = None,
    as_json: AsJson = False,
) -> None:
    """Search one space, record every trial, print the Pareto front."""
    name, device = given.pop("name", None), given.pop("device", None)
    chosen = {field: given.pop(field, None) for field in ("space", "base_model", "data")}
    chosen |= {"trials": given.pop("n_trials", None), "sampler": sampler}
    planned_for = _planned_for(gpu, device, dry_run=dry_run)
    settings = plan.choose(name, "cuda" if planned_for and device is None else device, chosen, given)
    notice = plan.demo_notice(settings, {"device": device, **chosen, **given})
    if dry_run:
        plan.check_rows(settings)
        if notice:
            logger.info(notice)
        _print_plan(settings, planned_for, as_json)
        return
    plan.need_gpu(settings.device, settings.address)
    settings = base_targets.fetched(settings)
    from orchestrator.cli.running import run_sweep  # with what a sweep needs: no bad setting waits for that

    run_sweep(settings, resume=False, as_json=as_json, notice=notice)


def _planned_for(gpu: str | None, device: str | None, *, dry_run: bool) -> Gpu | None:
    """The GPU of --gpu.

    Raises:
        ConfigError: none has this name; it is said of a run, which takes the GPUs that are there; or of a CPU.
    """
    if gpu is not None and not dry_run:
        raise ConfigError(f"--gpu: {gpu!r} is for --dry-run; a run takes the GPUs that are there, see --device-kind")
    if gpu is not None and device == "cpu":
        raise ConfigError(f"--gpu: {gpu!r} is no CPU; leave out --device cpu")
    return None if gpu is None else gpu_named(gpu)


def _print_plan(settings: SweepSettings, gpu: Gpu | None, as_json: bool) -> None:
    firsts = plan.first_configs(settings, 5)
    peaks, coverage = plan.predicted_peaks_mib(settings, firsts, gpu), base_targets.coverage_lines(settings)
    if as_json:
        configs = [config.to_dict() for config in firsts]
        planned = {"settings": settings.model_dump(mode="json"), "first_configs": configs, "predicted_peak_mib": peaks}
        planned |= {"fits": fits_of(peaks, gpu), "coverage": coverage}
        print_json(planned | {"predicted_seconds": duration.predicted_seconds(settings, ROOT, gpu=gpu)})
        return
    print_text("\n".join(_plan_lines(settings, coverage, gpu)))
    price = settings.usd_per_gpu_hour and settings.usd_per_gpu_hour * settings.gpus_per_trial
    console, on_gpu = Console(), settings.device == "cuda"
    seconds = duration.trials_seconds(settings, firsts, ROOT, gpu)
    print("the first trials, with what is predicted; 4-bit ones bring 16-bit baselines")
    console.print(plan_table(firsts, peaks, seconds, price, on_gpu=on_gpu))
    if gpu and (excess := excess_line(peaks, gpu)):
        print_text(excess)
    missing = missing_lines(peaks, seconds, settings.compute_dtype, gpu, on_gpu=on_gpu)
    for line in (f"all of them: {fixed_line(firsts)}", *missing):
        print(folded(line, console.width))


def _plan_lines(settings: SweepSettings, coverage: list[str], gpu: Gpu | None) -> Iterator[str]:
    """What is going to be run, on what, and how long it takes."""
    space = settings.space
    yield f"sweep {settings.name}: space {space.name} ({space.method})"
    yield f"trials: {to_come(settings)}"
    if line := plan.without_4_bits(settings):
        yield line
    data = data_caption(settings.data, settings.data_split, settings.columns)
    yield f"base model {settings.base_model}, data {data}, on {settings.device}"
    limit = "" if settings.min_similarity is None else f"; similarity at least {settings.min_similarity:g}"
    yield f"objectives {', '.join(settings.objectives)}{limit}"
    yield from coverage
    said = ["stop_when_flat"] if settings.stop_when_flat else []
    for name in ("max_gpu_hours", "max_hours", "max_usd", "warm_start"):
        if (value := getattr(settings, name)) is not None:
            said.append(f"{name} {value}")
    if said:
        yield "; ".join(said)
    if line := duration.text(settings, ROOT, gpu=gpu):
        on = f"on one {gpu.name} by its published speeds" if gpu else "on the device of the last sweep here"
        yield f"{line} (one at a time, {on})"
    if line := disk.text(settings):
        yield line
