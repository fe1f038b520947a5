"""`export`: one trial's adapter, to use elsewhere."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from orchestrator.analysis import choice
from orchestrator.cli.options import AsJson, Knee, MaxMemory, named, sweep_names
from orchestrator.cli.output import print_json, print_text
from orchestrator.report import export as exports
from orchestrator.settings import ROOT
from orchestrator.settings.command import command, python
from trainables.values.errors import ConfigError


def export(
    name: Annotated[str | None, typer.Argument(help="name of the sweep; default: the newest", metavar="NAME")] = None,
    dest: Annotated[
        Path | None, typer.Argument(help="folder to write, new or empty; of one argument, this is it", metavar="DEST")
    ] = None,
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

    Without --trial the one that `best` names: the cheapest with the lowest validation loss, within noise, of those
    that count for the front.
    """
    name, dest = _sweep_and_folder(name, dest)
    limit = None if max_memory is None else choice.mib_of(max_memory)
    wanted = exports.Which(trial=trial, max_memory_mib=limit, at_knee=knee)
    exported = exports.run(name, dest, wanted, ROOT, merge=merge, check=check, push=push)
    if as_json:
        print_json(exported)
        return
    print_text(f"trial {exported['trial']}: {exported['why']}")
    script = quote(str(dest / exports.SCRIPT))
    print_text(f"it is in {dest}; try: {python()} {script} 'Name three colours.'")
    if check:
        print(f"read back: {exported['reloaded_loss_nats']:.4f} nats, recorded {exported['eval_loss_nats']:.4f}")
    if push:
        print_text(f"uploaded to {exported['url']}")


def _sweep_and_folder(first: str | None, second: Path | None) -> tuple[str, Path]:
    """Of the arguments: one alone is the folder.

    Raises:
        ConfigError: there is none, it is a sweep's name, or there is no sweep.
    """
    if first is None:
        raise ConfigError("DEST: say which folder to write the adapter to, one that is new or empty")
    if second is not None:
        return first, second
    if first in sweep_names(first):
        raise ConfigError(f"DEST: {first!r} is a sweep; say where its adapter goes: {command()} export {first} FOLDER")
    return named(None), Path(first)
