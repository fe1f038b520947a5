"""`sensitivity`: where in the base 4 bits show."""

from typing import Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    BaseModelOption,
    ColumnsOption,
    DataOption,
    DataSplitOption,
    DeviceOption,
    in_flags,
)
from orchestrator.cli.output import print_json
from orchestrator.sensitivity import run as runs
from orchestrator.settings import ROOT


@in_flags
def sensitivity(
    base_model: BaseModelOption = None,
    data: DataOption = None,
    data_split: DataSplitOption = None,
    columns: ColumnsOption = None,
    device: DeviceOption = None,
    name: Annotated[str | None, typer.Option(help="of the run; default: the time")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where in the base 4 bits shows: each module, block and kind alone, and all but it; no training."""
    settings = runs.choose(name, base_model, data, device, ROOT, data_split=data_split, columns=columns)
    result = runs.run(settings, ROOT)
    page = runs.publish(result, ROOT, runs.write(result, ROOT))
    if as_json:
        print_json(result.to_dict() | {"folder": str(settings.folder(ROOT)), "mlflow_run": page})
    else:
        runs.print_result(result, ROOT, page)
