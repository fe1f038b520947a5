"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="name of the sweep")]
NameOrNewest = Annotated[str | None, typer.Argument(help="name of the sweep; default: the newest")]
MaxMemory = Annotated[str | None, typer.Option(help="only trials that need at most so much peak memory, e.g. 2GiB")]
Knee = Annotated[bool, typer.Option("--knee", help="the front's knee instead of the lowest validation loss")]
BaseModel = Annotated[str | None, typer.Option(help="hub id, folder, random:FOLDER or demo")]
Data = Annotated[str | None, typer.Option(help="hub id, file of JSON, JSON Lines or Parquet, or demo")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu; default: what the machine has")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
