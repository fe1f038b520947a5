"""`make card-evidence`: the sweeps behind a model card, one after the other, each by the command that anyone can give.

Every command is printed before it runs. What is finished is passed over and what was stopped goes on by `resume`, so
that the same call again goes on where the last one ended.
"""

import argparse
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli.main import main
from orchestrator.driver.plan import defaults_for, device_here
from orchestrator.settings import ROOT, refuse_secrets_in, stored, sweep_folder
from orchestrator.settings.command import command
from trainables.models.layout import known_layout
from trainables.values.errors import ConfigError, did_you_mean
from trainables.values.own_process import command_of, own_environment

logger = logging.getLogger("orchestrator.cli.evidence")  # by this name where it is the program itself, too

GRID_SEEDS, RATE_SEEDS, KEPT_SEEDS = 5, 4, 3
"""Fresh seeds of each cell, beside the one that it was chosen with."""
BLOCK = "BLOCK"
"""Stands in a dry run for the block that the sensitivity run will name."""
STEPS = {
    "grid": "what 4 bits cost at each rank: 8 cells under 6 seeds, 48 trials",
    "sensitivity": "where in the base they are felt: every module and block, no training",
    "rates": "the best learning rate of 8 cells out of 5: 40 trials, then 4 fresh seeds of what was chosen, 32 trials",
    "keep": "is the block that is felt most worth its 16 bits: 4 seeds, whose baselines the grid has",
    "loops": "memory and time in a stock script's loop: 2 trials of 8 steps, and 2 that every verdict takes",
    "pareto": "the search: 32 configs, their baselines and seed replicates",
    "answers": "the questions of the card, answered from all of these",
    "card": "the card itself",
}
SWEEPS = ("grid", "rates", "keep", "loops", "pareto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line said.

    Attributes:
        inputs: flags of base, data and device, which `run` and `sensitivity` both take.
        more: further flags of `run`.
        base: name of the base model.
        prefix: begins the name of every sweep.
        output: file of the card.
        licence: of the rows, as `card` takes it.
    """

    inputs: tuple[str, ...]
    more: tuple[str, ...]
    base: str
    prefix: str
    output: str
    licence: str | None

    def name(self, step: str) -> str:
        return f"{self.prefix}-{step}"


def words_of(step: str, asked: Asked, *, dry_run: bool) -> list[str]:
    """The command of a step, without the program's name."""
    run = ["run", "--name", asked.name(step), *asked.inputs, *asked.more]
    there = [name for name in map(asked.name, SWEEPS) if dry_run or _is_sweep(name)]
    match step:
        case "grid":
            return [*run, "--space", "diagnostic", "--finalist-seeds", str(GRID_SEEDS)]
        case "sensitivity":
            return ["sensitivity", "--name", asked.name(step), *asked.inputs]
        case "rates":
            return [*run, "--space", "card_rates", "--finalist-seeds", str(RATE_SEEDS)]
        case "keep":
            block = BLOCK if dry_run and not _sensitivity_file(asked).exists() else worst_block(asked)
            return [*run, "--space", "card_keep", "--keep-16bit", block, "--finalist-seeds", str(KEPT_SEEDS)]
        case "loops":
            stock = ["--loop", "standard", "--engine", "eager", "--verdict-seeds", "1"]
            return [*run, "--space", "diagnostic", "--trials", "2", "--steps", "8", *stock]
        case "pareto":
            return [*run, "--space", "pareto", "--trials", "32"]
        case "answers":
            return ["answers", *there]
        case _:
            licence = ["--license", asked.licence] if asked.licence else []
            answers = ["--answers", ",".join(there)] if there else []
            return ["card", asked.name("grid"), "--force", "--output", asked.output, *licence, *answers]


def _is_sweep(name: str) -> bool:
    return (sweep_folder(name) / "ledger.db").is_file()


def _sensitivity_file(asked: Asked) -> Path:
    return ROOT / "sensitivity" / asked.name("sensitivity") / "sensitivity.json"


def worst_block(asked: Asked) -> str:
    """Full name of the block that, left at 16 bits alone, leaves the lowest loss on the validation rows.

    Raises:
        ConfigError: the sensitivity run is missing.
    """
    path = _sensitivity_file(asked)
    if not path.is_file():
        raise ConfigError(f"keep: it takes what the step sensitivity writes ({path}); run that first")
    rows = json.loads(path.read_text(encoding="utf-8"))["variants"]
    blocks = [row for row in rows if row["scope"] == "all_but_block"]
    worst = min(blocks, key=lambda row: (row["loss_nats"], row["block"]))
    layout = known_layout(asked.base)
    if layout is None:
        raise ConfigError(f"keep: the config.json of {asked.base} is not on this machine any more")
    return layout.family.name_of(worst["block"])


def next_words(step: str, asked: Asked, *, dry_run: bool) -> list[str] | None:
    """The command that brings a step to its end; None where it is done already.

    Raises:
        ConfigError: a sweep of this name is of another base.
    """
    if step == "sensitivity":
        return None if _sensitivity_file(asked).exists() else words_of(step, asked, dry_run=dry_run)
    if step in ("answers", "card") or not (sweep_folder(asked.name(step)) / "settings.json").is_file():
        return words_of(step, asked, dry_run=dry_run)
    base = stored.load(sweep_folder(asked.name(step))).base_model
    if base != asked.base:
        raise ConfigError(f"NAME: sweep {asked.name(step)!r} is of {base}, not of {asked.base}; choose another NAME")
    return ["resume", asked.name(step)]


def parsed(arguments: Sequence[str]) -> tuple[Asked, list[str], bool]:
    """What was asked, the steps in their order, and whether they are only to be shown.

    Raises:
        ConfigError: an unknown step or device.
    """
    parser = argparse.ArgumentParser(prog="card-evidence", description=__doc__, allow_abbrev=False)
    parser.add_argument("--base-model", help="hub id or folder; default: gpt2-medium on a GPU, else the demo")
    for flag in ("--data", "--data-split", "--columns", "--device"):
        parser.add_argument(flag, help="as of run")
    parser.add_argument("--name", help="begins the names of the sweeps; default: the base's own")
    parser.add_argument("--only", help=f"some of the steps, with commas between them: {', '.join(STEPS)}")
    parser.add_argument("--output", default="MODEL_CARD.md", help="file of the card")
    parser.add_argument("--license", help="of the rows, as of card")
    parser.add_argument("--dry-run", action="store_true", help="show the plans; touch neither GPU nor network")
    values, more = parser.parse_known_args(arguments)
    steps = values.only.split(",") if values.only else list(STEPS)
    for step in steps:
        if step not in STEPS:
            raise ConfigError(f"ONLY: no step {step!r}{did_you_mean(step, STEPS)}")
    device = values.device if values.dry_run and values.device else device_here(values.device)
    defaults = defaults_for(device, values.base_model)
    base = values.base_model or defaults["base_model"]
    sources = {"--base-model": base, "--data": values.data or defaults["data"]}
    sources |= {"--data-split": values.data_split, "--columns": values.columns, "--device": values.device}
    refuse_secrets_in(sources)
    inputs: list[str] = []
    for flag, value in sources.items():
        inputs += [flag, value] if value else []
    prefix = values.name or Path(base.removeprefix("random:").partition("@")[0]).name.lower()
    asked = Asked(
        inputs=tuple(inputs),
        more=tuple(more),
        base=base,
        prefix=prefix,
        output=values.output,
        licence=values.license,
    )
    return asked, [step for step in STEPS if step in steps], values.dry_run


def commands_of(asked: Asked, steps: Sequence[str], *, dry_run: bool) -> Iterator[list[str]]:
    """The commands that are still to run, each made when it is its turn; a line about each step."""
    for step in steps:
        words = next_words(step, asked, dry_run=dry_run)
        logger.info(f"\n{step}: {STEPS[step]}{'' if words else '; done already'}")
        if words:
            yield [*words, "--dry-run"] if dry_run and words[0] == "run" else words


def _exit_code(words: Sequence[str]) -> int:
    """Of a command that ends by itself, or in order when this program is interrupted or terminated."""
    process = subprocess.Popen(command_of("orchestrator.cli", *words), env=own_environment())
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal interrupts the command, too: it is waited for
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


def work(exit_code: Callable[[Sequence[str]], int] = _exit_code) -> None:
    """Run or show what is left; ends with the exit code of the first command that fails.

    Args:
        exit_code: runs a command.
    """
    asked, steps, dry_run = parsed(sys.argv[1:])
    for words in commands_of(asked, steps, dry_run=dry_run):
        print(f"$ {command()} {shlex.join(words)}", flush=True)
        if dry_run and (words[0] != "run" or BLOCK in words):
            continue
        if code := exit_code(words):
            logger.info(f"that ended with exit code {code}; the same call again goes on from there")
            sys.exit(code)


if __name__ == "__main__":
    main(work)
