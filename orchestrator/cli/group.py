"""The commands by name, each imported only when it is called, so that `--help` and a wrong name need none of them."""

from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP = "Which LoRA settings, at 4 or 16 bits, and what does each gigabyte and second buy?"
COMMANDS = {
    "run": "Search one space, record every trial, print the Pareto front.",
    "resume": (
        "Go on with a sweep that was interrupted, or add trials; finished trials are kept, a finished sweep as it is."
    ),
    "stop": "Stop a sweep that runs in another process, as Ctrl-C does there; `resume` goes on with it.",
    "status": "Show how far a sweep is.",
    "list": "List the sweeps under mlflow_runs/, the newest first, then those that git keeps.",
    "best": "Name one config: the cheapest with the lowest validation loss, within noise.",
    "fit": (
        "Predict whether a model can be tuned on a GPU: peak memory and its parts, the largest batch, what 4 bits save."
    ),
    "report": "Say in eight lines what a sweep came to, from its ledger alone; writes report.md and report.html.",
    "answers": "Answer the model card's questions from the grids of several sweeps: what do 4 bits cost, what helps?",
    "card": "Fill the model card from a sweep's ledger, whatever the sweep has measured so far.",
    "export": (
        "Write a trial's adapter with tokenizer, card and a script that generates; nothing leaves without --push."
    ),
    "sensitivity": (
        "Show where in the base 4 bits shows: each module, block and kind alone, and all but it; no training."
    ),
    "sync": "Bring MLflow up to date with a sweep's ledger.",
    "verify": "Check that a sweep lost and doubled nothing; exit code 1, and each difference on a line, where it did.",
    "init": "Write a commented search space and rows to begin with, which run as they are.",
    "delete": "Delete a sweep: its folder, with ledger and adapters, and its runs in MLflow.",
    "schema": "Print the JSON Schema of what --json prints.",
    "ui": "Open MLflow over mlflow_runs/mlflow.db, on this machine only unless told otherwise.",
}
"""What `--help` lists: the first line of each command's own help."""


WORDS = {
    "base": "the pretrained model, frozen; a trial trains a LoRA adapter on it",
    "trial": "one training run; a config is its settings",
    "16-bit baseline": "the same config, seed and rows with the base at 16 bits",
    "seed replicate": "the same config under another seed: it shows what a seed alone changes",
    "rung": "a step at which a trial is measured, and may be stopped",
    "front": "trials that no other is better than in one objective without being worse in another",
    "finalist": "a trial of the front, or the best; it is evaluated on test rows, which the search never sees",
    "cost key": "what memory and time depend on: measured once, shared by all trials that have it",
    "lean, standard loop": "this program's training step, and a stock script's",
    "captured": "the step is recorded as a CUDA graph and replayed",
    "space": "which settings are searched, and over which values",
}
"""What `--help` explains: words of the messages and tables."""
EPILOG = "\n\n".join(["Words:", *(f"{word}: {meaning}." for word, meaning in WORDS.items())])


class LazyGroup(TyperGroup):
    """Lists commands without a body; the one that is called takes the place of its like."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(listed.name), rest


def load(name: str) -> Any:
    """The command of a name: function `name` of module orchestrator.cli.commands.`name`."""
    app = typer.Typer(add_completion=False)
    app.command()(getattr(import_module(f"orchestrator.cli.commands.{name}"), name))
    return typer.main.get_command(app)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"qlora-sweep {metadata.version('qlora-sweep')}")
        raise typer.Exit


def _group() -> TyperGroup:
    """All commands, and what the program itself can be asked for: its version, completion in the user's shell."""
    app = typer.Typer(cls=LazyGroup, help=HELP, epilog=EPILOG, no_args_is_help=True)

    @app.callback()
    def program(
        version: Annotated[
            bool, typer.Option("--version", help="say the version", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None: ...

    group = typer.main.get_command(app)
    for name, line in COMMANDS.items():
        group.add_command(TyperCommand(name, help=line))
    return group


commands = _group()
