"""Command line: `qlora-sweep run | resume | status | best | report | card | export | sensitivity | verify | sync | ui`.

Results go to standard output (with --json one JSON object and nothing else), all else to standard
error. Exit codes: 0 done, 1 the sweep failed or a finalist could not be evaluated, 2 bad setting, 3 bad
data, 4 no disk space, 5 model, data or cluster unreachable, 130 interrupted. Heavy libraries are imported
only once settings are sound.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import messages
from orchestrator.command import command, python
from trainables.values.errors import ConfigError, DiskFull, SweepError

if TYPE_CHECKING:
    from orchestrator.driver.sweep import SweepResult
    from orchestrator.report.content import Report
    from orchestrator.settings import SweepSettings
    from trainables.values.results import TrialResult

logger = logging.getLogger(__name__)

INTERRUPTED = 130
UI_PORT = 5000
UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP})
"""Of a path that its user has to mend; EEXIST is a file, or a link to nowhere, in a folder's place."""

app = typer.Typer(
    help="Which LoRA settings, at 4 or 16 bits, and what does each gigabyte and second buy?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Argument(help="name of the sweep")]
MaxMemory = Annotated[str | None, typer.Option(help="only trials that need at most so much peak memory, e.g. 2GiB")]
Knee = Annotated[bool, typer.Option("--knee", help="the front's knee instead of the lowest validation loss")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def sweep_folder(name: str) -> Path:
    """Folder of a sweep's state."""
    from orchestrator import settings as settings_file

    return settings_file.sweep_folder(name)


@app.command()
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
    from orchestrator.driver import plan

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
    _run(settings, resume=False, as_json=as_json)


def _print_plan(settings: "SweepSettings", as_json: bool) -> None:
    from orchestrator.driver import duration
    from orchestrator.driver.plan import first_configs, predicted_peaks_mib
    from orchestrator.settings import ROOT

    firsts = first_configs(settings, 5)
    configs = [config.to_dict() for config in firsts]
    peaks = predicted_peaks_mib(settings, firsts)
    if as_json:
        plan = {"settings": settings.model_dump(mode="json"), "first_configs": configs, "predicted_peak_mib": peaks}
        print(json.dumps(plan | {"predicted_seconds": duration.predicted_seconds(settings, ROOT)}))
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


@app.command()
def resume(name: Name, as_json: AsJson = False) -> None:
    """Go on with a sweep that was interrupted; finished trials are kept, and a finished sweep as it is."""
    from orchestrator.driver.plan import need_gpu
    from orchestrator.settings import load as load_settings

    settings = load_settings(sweep_folder(name))
    if _say_finished(settings, as_json):
        return
    need_gpu(settings.device, settings.address)
    _run(settings, resume=True, as_json=as_json)


def _say_finished(settings: "SweepSettings", as_json: bool) -> bool:
    """Print a sweep of which nothing is left to do, and write nothing; False of any other."""
    from orchestrator.analysis.budgets import ENDED, Ended
    from orchestrator.driver.sweep import SweepResult
    from orchestrator.security.folder_access import refuse_shared
    from orchestrator.settings import ROOT
    from orchestrator.verify import checks
    from orchestrator.verify import ledger as kept_of

    folder, name = sweep_folder(settings.name), settings.name
    refuse_shared(folder, ROOT)
    kept = kept_of.read(settings, folder) if (folder / "ledger.db").is_file() else None
    if kept is None or kept.workload is None or not checks.is_over(kept):
        return False
    from orchestrator.cli.progress import print_result
    from orchestrator.tracking.store import has_whole_run, store_file

    ended = Ended.from_fact(kept.facts[ENDED])
    about = {"settings": settings, "workload": kept.workload, "trials": tuple(kept.trials), "front": kept.front}
    print_result(SweepResult(**about, interrupted=False, ended=ended), None, as_json=as_json)
    logger.info(f"sweep {name} is finished, nothing is left to run; what it came to: {command()} report {name}")
    if settings.tracking_uri is not None:
        logger.info(f"whether MLflow has all of it says: {command()} verify {name}")
    elif not has_whole_run(store_file(ROOT), str(kept.facts["id"])):
        logger.info(f"MLflow lacks some of it; complete it with: {command()} sync {name}")
    return True


def _run(settings: "SweepSettings", *, resume: bool, as_json: bool, **stand_ins: Any) -> None:
    """Run and publish a sweep; `stand_ins` are orchestrator.driver.sweep.run's, for tests of faults."""
    from rich.console import Console

    from orchestrator.cli.progress import ProgressDisplay, print_result
    from orchestrator.cluster import ray_cluster
    from orchestrator.driver import duration, sweep
    from orchestrator.settings import ROOT
    from orchestrator.tracking.store import check_server
    from orchestrator.tracking.writer import MlflowWriter

    if settings.tracking_uri is not None:
        check_server(settings.tracking_uri)
    display = ProgressDisplay(settings, sweep_folder(settings.name) / "ledger.db", Console(stderr=True))
    writer = MlflowWriter(settings.name, ROOT)
    begin = monotonic()
    logger.info(f"sweep {settings.name}: space {settings.space.name}, base {settings.base_model}, data {settings.data}")

    def started(ledger: Any, workload: Any) -> None:
        counts = ledger.fact("data_counts")
        notes = [f"{n} {what}" for what, n in counts.items() if n and what.startswith(("dropped", "longer"))]
        logger.info(
            f"rows: {counts['read']} read, {counts['train']} for training{''.join('; ' + note for note in notes)}; "
            f"{workload.compute_dtype} arithmetic"
        )
        if workload.weights in ("random", "stand-in"):
            logger.info(f"base: {workload.base_caption}")
        if line := duration.text(settings, ROOT, ray_cluster.n_slots(settings)):
            logger.info(line)
        display.start()
        writer.start()
        ray_cluster.spare_mlflow()

    try:
        result = sweep.run(settings, ROOT, resume=resume, started=started, **stand_ins)
        display.stop()
        from orchestrator.tracking.publishing import end  # with all figures: a second, which no bad input waits for

        run_page = end(settings, ROOT, writer, monotonic() - begin, result.interrupted)
    except KeyboardInterrupt:
        logger.info(f"interrupted; if it had begun, go on with: {command()} resume {settings.name}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        display.stop()
        writer.stop()
    print_result(result, run_page, as_json=as_json)
    refuse_unless_whole(result)


def refuse_unless_whole(result: "SweepResult") -> None:
    """End with the exit code of a sweep that did not come to what it was to come to.

    Raises:
        SweepError: it gave itself up, no trial completed, or a finalist could not be evaluated.
        Exit: it was interrupted.
    """
    from orchestrator.analysis.verdict import failed_evaluations
    from orchestrator.cli.progress import why_empty

    resume = f"{command()} resume {result.settings.name}"
    if result.stopped:
        raise SweepError(f"stopped: {result.stopped}; once that is mended: {resume}")
    if result.interrupted:
        logger.info(f"interrupted; go on with: {resume}")
        raise typer.Exit(INTERRUPTED)
    if not any(trial.state == "completed" for trial in result.trials):
        last = result.trials[-1].reason if result.trials else "none was started"
        raise SweepError(why_empty(result) or f"no trial completed; the last reason: {last}")
    if failed := failed_evaluations(result.trials, result.settings):
        more = f" (and {len(failed) - 1} more, see above)" if len(failed) > 1 else ""
        raise SweepError(f"{failed[0]}{more}; to try again: {resume}")


@app.command()
def status(name: Name, as_json: AsJson = False) -> None:
    """Show how far a sweep is."""
    from rich.console import Console

    from orchestrator.analysis.budgets import ENDED, FINISHED
    from orchestrator.analysis.status import status_of
    from orchestrator.cli.progress import status_view
    from orchestrator.cluster.gpu_memory import gpu_memory, text_of

    settings, trials, facts = _read_facts(name, ENDED, FINISHED)
    found = status_of(trials, settings, ended=facts[ENDED] is not None, finished=bool(facts[FINISHED]), now=time())
    if as_json:
        print(json.dumps({"name": name, **asdict(found)}))
    else:
        Console().print(status_view(name, found, text_of(gpu_memory()) if found.n_done < found.n_expected else ""))


@app.command()
def best(
    name: Annotated[str | None, typer.Argument(help="name of the sweep; default: the newest")] = None,
    max_memory: MaxMemory = None,
    knee: Knee = False,
    as_json: AsJson = False,
) -> None:
    """Name one config: the lowest validation loss of the completed search trials that count for the front."""
    from orchestrator.analysis import choice
    from orchestrator.analysis.front import REFERENCE
    from orchestrator.report.content import newest
    from orchestrator.settings import ROOT

    limit = None if max_memory is None else choice.mib_of(max_memory)
    settings, trials, facts = _read_facts(name or newest(ROOT), REFERENCE)
    found = choice.choose(trials, settings, facts[REFERENCE], max_memory_mib=limit, at_knee=knee)
    print(json.dumps(found.to_dict()) if as_json else found.text)


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(help="name of the sweep; default: the newest")] = None,
    other: Annotated[str | None, typer.Argument(help="a second sweep to put beside it")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a sweep came to, from its ledger alone; writes report.md and report.html into its folder."""
    if other is None:
        _report_one(name, as_json)
        return
    from orchestrator.report.beside import beside

    pair = [_report_of(sweep)[0] for sweep in (str(name), other)]
    print(json.dumps({"sweeps": [one.to_dict() for one in pair]}) if as_json else beside(*pair))


def _report_of(name: str) -> "tuple[Report, SweepResult | None]":
    """With the sweep as its figures need it, once a trial has completed."""
    from orchestrator.driver.sweep import result_of
    from orchestrator.ledger import Ledger
    from orchestrator.report import content as report
    from orchestrator.settings import load as load_settings

    folder = sweep_folder(name)
    settings = load_settings(folder)
    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        trials = ledger.trials()
        found = report.read(settings, ledger, trials)
        return found, result_of(settings, ledger, trials=trials) if found.states.get("completed") else None
    finally:
        ledger.close()


def _report_one(name: str | None, as_json: bool) -> None:
    from orchestrator.report import content as report_of
    from orchestrator.report import digests, outputs
    from orchestrator.settings import ROOT

    chosen = name or report_of.newest(ROOT)
    found, result = _report_of(chosen)
    pictures = outputs.draw(result, sweep_folder(chosen)) if result else []
    files = outputs.write_report(found, sweep_folder(chosen))
    digests.keep([*pictures, *files], sweep_folder(chosen))
    print(json.dumps(found.to_dict()) if as_json else files[0].read_text(encoding="utf-8"))
    logger.info(f"to open in a browser: {files[1]}")


@app.command()
def card(
    name: Name,
    output: Annotated[Path, typer.Option(help="file to write")] = Path("MODEL_CARD.md"),
    force: Annotated[bool, typer.Option("--force", help="replace the file where there is one")] = False,
) -> None:
    """Fill the model card from a sweep's ledger, whatever the sweep has measured so far."""
    from orchestrator.report import card as cards
    from orchestrator.report.card_results import layers_of
    from orchestrator.settings import ROOT

    found, _ = _report_of(name)
    if output.exists() and not force:
        raise ConfigError(f"OUTPUT: {output} exists; say --force to replace it, or name another file with --output")
    logger.info(f"wrote {cards.write(cards.card_of(found, layers_of(ROOT, found.workload)), output)}")


@app.command()
def export(
    name: Name,
    dest: Annotated[Path, typer.Argument(help="folder to write; new or empty")],
    trial: Annotated[
        str, typer.Option(help="a trial's number, the start of its key, or best: what `best` names")
    ] = "best",
    max_memory: MaxMemory = None,
    knee: Knee = False,
    merge: Annotated[bool, typer.Option("--merge", help="also write the base with the adapter in it, 16-bit")] = False,
    check: Annotated[bool, typer.Option("--check", help="read it back and compare the held-out loss")] = False,
    push: Annotated[str | None, typer.Option(help="upload to this hub repo, OWNER/NAME; private if new")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trial's adapter with tokenizer, card and a script that generates; nothing leaves without --push.

    Without --trial the one that `best` names: the lowest validation loss of the completed search trials that count
    for the front.
    """
    from orchestrator.analysis import choice
    from orchestrator.report import export as exports
    from orchestrator.settings import ROOT

    limit = None if max_memory is None else choice.mib_of(max_memory)
    wanted = exports.Which(trial=trial, max_memory_mib=limit, at_knee=knee)
    exported = exports.run(name, dest, wanted, ROOT, merge=merge, check=check, push=push)
    if as_json:
        print(json.dumps(exported))
        return
    print(f"trial {exported['trial']}: {exported['why']}")
    script = quote(str(dest / exports.SCRIPT))
    print(f"it is in {dest}; try: {python()} {script} 'Name three colours.'")
    if check:
        print(f"read back: {exported['reloaded_loss_nats']:.4f} nats, recorded {exported['eval_loss_nats']:.4f}")
    if push:
        print(f"uploaded to {exported['url']}")


@app.command()
def sensitivity(
    base_model: Annotated[str | None, typer.Option(help="hub id, folder, random:FOLDER or demo")] = None,
    data: Annotated[str | None, typer.Option(help="hub id, file of JSON, JSON Lines or Parquet, or demo")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: what the machine has")] = None,
    name: Annotated[str | None, typer.Option(help="of the run; default: the time")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where in the base 4 bits shows: each module, block and kind alone, and all but it; no training."""
    from orchestrator.sensitivity import run as sensitivity
    from orchestrator.settings import ROOT

    settings = sensitivity.choose(name, base_model, data, device, ROOT)
    result = sensitivity.run(settings, ROOT)
    files = sensitivity.write(result, ROOT)
    sensitivity.print_result(result, ROOT, sensitivity.publish(result, ROOT, files), as_json=as_json)


@app.command()
def sync(name: Name) -> None:
    """Bring MLflow up to date with a sweep's ledger."""
    from orchestrator.driver.sweep import owned
    from orchestrator.settings import ROOT
    from orchestrator.tracking.publishing import publish

    settings, _ = _read(name)
    with owned(sweep_folder(name)):  # a running sweep writes MLflow itself; two writers would double its runs
        _, trials = _read(name)
        open_trials = [t for t in trials if t.state in ("queued", "running")]
        page = publish(settings, ROOT, interrupted=bool(open_trials))
    if page is None:
        raise SweepError("MLflow could not be written")
    print(page)


@app.command()
def verify(
    name: Name,
    repair: Annotated[
        bool, typer.Option("--repair", help="write settings, files, figures, report and MLflow again from the ledger")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that a sweep lost and doubled nothing; exit code 1, and each difference on a line, where it did."""
    from orchestrator.settings import ROOT
    from orchestrator.verify import checks as verifying

    found = verifying.run(name, ROOT, repair=repair)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        for difference in found.differences:
            print(difference)
        if not found.differences:
            print(found.summary)
    if found.differences:
        raise typer.Exit(1)


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="of the sweep for --optuna; default: the newest")] = None,
    optuna: Annotated[bool, typer.Option("--optuna", help="optuna-dashboard over one sweep instead")] = False,
    port: Annotated[int | None, typer.Option(help="to listen on; default: 5000, of --optuna 8080")] = None,
    host: Annotated[str, typer.Option(help="another needs --allowed-hosts and a password")] = "127.0.0.1",
    allowed_hosts: Annotated[
        str | None, typer.Option(help="under which others may ask, comma-separated: NAME:PORT")
    ] = None,
) -> None:
    """Open MLflow over mlflow_runs/mlflow.db, on this machine only unless told otherwise."""
    from orchestrator.settings import ROOT
    from orchestrator.tracking import ui as pages
    from orchestrator.tracking.store import experiment_page, store_file

    if optuna:
        from orchestrator.report.content import newest
        from orchestrator.tracking import dashboard

        dashboard.serve(name or newest(ROOT), ROOT, dashboard.PORT if port is None else port)
        return
    port = UI_PORT if port is None else port
    pages.arguments(ROOT, host, port, allowed_hosts)
    pages.refuse_port(host, port)
    logger.info(f"MLflow: http://{host}:{port}/{experiment_page(store_file(ROOT))}  (Ctrl-C ends it)")
    pages.serve(ROOT, host, port, allowed_hosts)


def _read(name: str) -> "tuple[SweepSettings, list[TrialResult]]":
    return _read_facts(name)[:2]


def _read_facts(name: str, *facts: str) -> "tuple[SweepSettings, list[TrialResult], dict[str, Any]]":
    from orchestrator import settings as settings_file
    from orchestrator.ledger import Ledger

    folder = settings_file.sweep_folder(name)
    settings = settings_file.load(folder)
    ledger = Ledger(folder / "ledger.db", read_only=True)
    try:
        return settings, ledger.trials(), {fact: ledger.fact(fact) for fact in facts}
    finally:
        ledger.close()


def main(work: Callable[[], Any] = app) -> None:
    """Entry point: errors become one line and an exit code."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.umask(os.umask(0o022) | 0o022)  # nobody else writes into what this makes
    with messages.shown():
        _end(work)


def _end(work: Callable[[], Any]) -> None:
    try:
        work()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Ray can crash when it cleans up a half start; its processes die with this one
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise
    except SweepError as error:
        logger.error(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        logger.error("interrupted")
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = error.filename or Path.cwd()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            logger.error(f"error: no disk space left ({where}); free some and resume")
            sys.exit(DiskFull.exit_code)
        if error.errno not in UNUSABLE:
            raise
        why = "no folder" if error.errno == errno.EEXIST else error.strerror
        logger.error(
            f"error: {where} cannot be used ({why}); make it one that you may read and write, or start elsewhere"
        )
        sys.exit(ConfigError.exit_code)
