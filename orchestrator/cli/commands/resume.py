"""`resume`: go on with a sweep that was interrupted."""

from typing import Annotated

import typer

from orchestrator.cli.options import FIELDS, AsJson, NameOrNewest, named
from orchestrator.driver import extend
from orchestrator.driver.plan import need_gpu
from orchestrator.settings import ROOT, sweep_folder
from orchestrator.settings.stored import load

VerdictSeeds = Annotated[int | None, typer.Option(min=1, max=100, help=FIELDS["verdict_seeds"].description)]


Trials = Annotated[int | None, typer.Option("--trials", min=1, help="configs to try in all, more than so far")]


def resume(
    name: NameOrNewest = None, trials: Trials = None, verdict_seeds: VerdictSeeds = None, as_json: AsJson = False
) -> None:
    """Go on with a sweep that was interrupted, or add trials; finished trials are kept, a finished sweep as it is."""
    settings = load(sweep_folder(named(name)))
    from orchestrator.cli import running  # which imports what a sweep needs: no wrong name waits for that

    if verdict_seeds is None and trials is None and running.shown_if_finished(settings, as_json=as_json):
        return
    need_gpu(settings.device, settings.address)
    if trials is not None:
        settings = extend.with_trials(settings, trials, ROOT)
    running.run_sweep(settings, resume=True, as_json=as_json, verdict_seeds=verdict_seeds)
