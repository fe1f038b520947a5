"""`resume`: go on with a sweep that was interrupted."""

from typing import Annotated

import typer

from orchestrator.cli.options import FIELDS, AsJson, Name
from orchestrator.driver.plan import need_gpu
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import load

VerdictSeeds = Annotated[int | None, typer.Option(min=1, max=100, help=FIELDS["verdict_seeds"].description)]


def resume(name: Name, verdict_seeds: VerdictSeeds = None, as_json: AsJson = False) -> None:
    """Go on with a sweep that was interrupted; finished trials are kept, and a finished sweep as it is."""
    settings = load(sweep_folder(name))
    from orchestrator.cli import running  # which imports what a sweep needs: no wrong name waits for that

    if verdict_seeds is None and running.shown_if_finished(settings, as_json=as_json):
        return
    need_gpu(settings.device, settings.address)
    running.run_sweep(settings, resume=True, as_json=as_json, verdict_seeds=verdict_seeds)
