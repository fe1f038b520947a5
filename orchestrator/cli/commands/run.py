"""`run`: a new sweep."""

import json
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson
from orchestrator.driver import duration, plan
from orchestrator.settings import ROOT, SweepSettings


def run(
    space: Annotated[
        str | None, typer.Option(help="search space: demo, diagnostic, pareto, or a path to a .yaml")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="configs to try; completed 4-bit ones add their 16-bit baseline")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="steps of a full trial, in place of the space's")] = None,
    name: Annotated[str | None, typer.Option(help="of the sweep; default: space and time")] = None,
    address: Annotated[str | None, typer.Option(help="of a running Ray cluster: auto, HOST:PORT")] = None,
    base_model: Annotated[str | None, typer.Option(help="hub id, folder, random:FOLDER or demo")] = None,
    data: Annotated[str | None, typer.Option(help="hub id, file of JSON, JSON Lines or Parquet, or demo")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="of the front; repeat for several")] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="4-bit trials less like their baseline enter no front")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="runs of each finalist, under other seeds; 3 or more decide on ranks")
    ] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="share of a GPU for each trial")] = None,
    device_kind: Annotated[
        str | None, typer.Option(help="the one kind of GPU to run on in a mixed cluster: T4, A100, H200 ...")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="s3://, gs:// or a shared folder that workers write adapters to")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: what the machine has")] = None,
    compute_dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; default: the protocol's")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="graph (captured steps, needs a GPU) or eager; default: what is faster")
    ] = None,
    loop: Annotated[
        str | None, typer.Option(help="lean, or standard as a stock script has it; default: lean on a GPU")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the trials and the sampler")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, nsga2, gp, random, qmc or grid; default: the space's method")
    ] = None,
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="budget of GPU time, the finalists' seed replicates included")
    ] = None,
    max_hours: Annotated[float | None, typer.Option(help="budget of wall-clock time, the same")] = None,
    max_usd: Annotated[float | None, typer.Option(help="budget in money; needs --usd-per-gpu-hour")] = None,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(help="what a GPU costs")] = None,
    stop_when_flat: Annotated[
        bool, typer.Option("--stop-when-flat", help="end when the front's hypervolume hardly grows any more")
    ] = False,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="run again what another sweep under mlflow_runs/ has run")
    ] = False,
    reuse_across_versions: Annotated[
        bool,
        typer.Option(
            "--reuse-across-versions", help="reuse also what ran under other versions of PyTorch and the like"
        ),
    ] = False,
    warm_start: Annotated[
        str | None, typer.Option(help="name of a sweep over the same space that the sampler learns from")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="of MLflow; default: mlflow_runs/mlflow.db")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="join a Ray cluster that asks for no token")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan; touch neither GPU nor network")] = False,
    as_json: AsJson = False,
) -> None:
    """Search one space, record every trial, print the Pareto front."""
    given = {"max_steps": steps, "address": address, "min_similarity": min_similarity, "gpus_per_trial": gpus_per_trial}
    given |= {"finalist_seeds": repeats, "compute_dtype": compute_dtype, "engine": engine, "loop": loop}
    given |= {"seed": seed, "tracking_uri": tracking_uri}
    given |= {"objectives": tuple(objective) if objective else None}
    given |= {"max_gpu_hours": max_gpu_hours, "max_hours": max_hours, "max_usd": max_usd}
    given |= {"device_kind": device_kind, "storage": storage}
    given |= {"usd_per_gpu_hour": usd_per_gpu_hour, "warm_start": warm_start}
    given |= {"insecure": insecure or None, "reuse_across_versions": reuse_across_versions or None}
    given |= {"stop_when_flat": stop_when_flat or None, "reuse": False if no_reuse else None}
    chosen = {"space": space, "trials": trials, "base_model": base_model, "data": data, "sampler": sampler}
    settings = plan.choose(name, device, chosen, {k: v for k, v in given.items() if v is not None})
    if dry_run:
        plan.check_rows(settings)
        _print_plan(settings, as_json)
        return
    plan.need_gpu(settings.device, settings.address)
    from orchestrator.cli.running import run_sweep  # with what a sweep needs: no bad setting waits for that

    run_sweep(settings, resume=False, as_json=as_json)


def _print_plan(settings: SweepSettings, as_json: bool) -> None:

    firsts = plan.first_configs(settings, 5)
    configs = [config.to_dict() for config in firsts]
    peaks = plan.predicted_peaks_mib(settings, firsts)
    if as_json:
        planned = {"settings": settings.model_dump(mode="json"), "first_configs": configs, "predicted_peak_mib": peaks}
        print(json.dumps(planned | {"predicted_seconds": duration.predicted_seconds(settings, ROOT)}))
        return
    space = settings.space
    limits = {name: getattr(settings, name) for name in ("max_gpu_hours", "max_hours", "max_usd", "warm_start")}
    said = [f"{name} {value}" for name, value in limits.items() if value is not None]
    said += ["stop_when_flat"] if settings.stop_when_flat else []
    print(f"sweep {settings.name}: space {space.name} ({space.method}), {settings.n_trials} trials and their baselines")
    print(f"base model {settings.base_model}, data {settings.data}, on {settings.device}")
    print(f"objectives {', '.join(settings.objectives)}; similarity at least {settings.min_similarity:g}")
    if said:
        print("; ".join(said))
    if line := duration.text(settings, ROOT):
        print(f"{line} (one at a time, on the device of the last sweep here)")
    for config, peak in zip(configs, peaks, strict=True):
        needs = f"  predicted peak {peak:.0f} MiB" if peak else ""
        print("  " + " ".join(f"{k}={'+'.join(v) if isinstance(v, list) else v}" for k, v in config.items()) + needs)
