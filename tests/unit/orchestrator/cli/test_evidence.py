"""`make card-evidence`: which commands are run, in which order, and what the same call again leaves out."""

import json
import shlex
from contextlib import nullcontext
from itertools import pairwise

import pytest

import search_spaces
from orchestrator.cli import evidence
from orchestrator.cli.answered import run_command
from orchestrator.cli.group import COMMANDS, load
from orchestrator.settings import stored
from search_spaces import Space
from tests.support.sweeps import make
from trainables.values.errors import ConfigError

BASE = ("--base-model", "demo", "--data", "demo", "--device", "cpu")
RUNS = ("grid", "rates", "keep", "loops", "pareto")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(*arguments: str, dry_run: bool = True) -> dict[str, list[str]]:
    """Each command that is shown, by its step."""
    asked, steps, _ = evidence.parsed([*BASE, *arguments])
    return {step: evidence.next_words(step, asked, dry_run=dry_run) for step in steps}


def sensitivity_of(here, losses: list[float]) -> None:
    """What a sensitivity run writes, of blocks whose loss at 16 bits alone is this."""
    rows = [{"scope": "block", "block": 0, "loss_nats": -9.0}]
    rows += [{"scope": "all_but_block", "block": b, "loss_nats": loss} for b, loss in enumerate(losses)]
    path = here / "mlflow_runs" / "sensitivity" / "demo-sensitivity" / "sensitivity.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"variants": rows}))


def cells(space: Space) -> int:
    """Pairs of precision and rank: of each the best config gets seed replicates."""
    return len({(space.config(point).precision, space.config(point).rank) for point in space.grid()})


def said_trials(step: str) -> int:
    """Sum of the trials that the line of a step names."""
    words = evidence.STEPS[step].replace(",", "").split()
    return sum(int(number) for number, noun in pairwise(words) if noun == "trials")


def test_every_command_is_one_that_anybody_could_give():
    for step, words in commands().items():
        assert words[0] in COMMANDS, step
        if words[0] == "run":
            known = {option for parameter in load("run").params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("step", ["grid", "loops"])
def test_the_command_that_answers_print_of_a_sweep_is_the_one_that_ran_it(step):
    words = commands()[step]
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    space = search_spaces.load(flags["--space"])
    named = {"name": flags["--name"], "device": "cuda", "n_trials": int(flags.get("--trials", space.n_points))}
    stock = {name: flags.get(f"--{name}", lean) for name, lean in (("loop", "lean"), ("engine", "graph"))}
    said = shlex.split(run_command(make(space, **named, **stock)))
    assert {name: dict(zip(said[2::2], said[3::2], strict=True)).get(f"--{name}") for name in stock} == {
        name: flags.get(f"--{name}") for name in stock
    }


def test_the_command_of_a_sweep_names_its_objectives_and_the_file_of_a_space_that_is_not_the_program_s():
    asked = ("eval_loss_nats", "embedding_cosine")
    words = shlex.split(run_command(make(name="t", objectives=asked)))
    assert [after for word, after in pairwise(words) if word == "--objective"] == [*asked]
    assert words[words.index("--space") + 1] == "grid.yaml"
    plain = shlex.split(run_command(make(search_spaces.load("diagnostic"), name="t")))
    assert plain[plain.index("--space") + 1] == "diagnostic"
    assert "--objective" not in plain


def test_the_search_comes_after_the_grids_and_the_card_last():
    assert [step for step in commands() if step in RUNS] == list(RUNS)
    assert list(commands())[-2:] == ["answers", "card"]
    assert commands()["answers"][1:] == [f"demo-{step}" for step in RUNS]


def test_the_card_holds_the_answers_of_all_its_sweeps_and_the_licence_that_was_said():
    words = commands("--license", "cc-by-nc-4.0")["card"]
    assert words[words.index("--answers") + 1].split(",") == commands()["answers"][1:]
    assert words[words.index("--license") + 1] == "cc-by-nc-4.0"
    assert "--license" not in commands()["card"]
    known = {option for parameter in load("card").params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("step", ["grid", "rates"])
def test_the_line_of_a_grid_says_how_many_trials_it_takes(step):
    words = commands()[step]
    space = search_spaces.load(words[words.index("--space") + 1])
    n_seeds = int(words[words.index("--finalist-seeds") + 1])
    assert said_trials(step) == space.n_points + cells(space) * n_seeds


def test_the_grid_is_the_cards_at_five_fresh_seeds_and_the_rates_are_chosen_by_one_and_run_by_four_fresh_ones():
    grid, rates = search_spaces.load("diagnostic"), search_spaces.load("card_rates")
    assert (cells(grid), grid.n_points, evidence.GRID_SEEDS) == (8, 8, 5)
    assert rates.parameters["learning_rate"].values == (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    assert rates.parameters["rank"].values == (1, 4, 16, 64)
    assert (rates.fixed["targets"], rates.fixed["alpha"], evidence.RATE_SEEDS) == (["all-linear"], 32, 4)


def test_what_is_kept_at_16_bits_is_a_cell_of_the_grid_whose_baselines_are_there():
    keep, grid = search_spaces.load("card_keep"), search_spaces.load("diagnostic")
    baselines = {keep.config(point).at_other_precision for point in keep.grid()}
    assert baselines <= {grid.config(point) for point in grid.grid()}


def test_the_block_that_is_kept_is_the_one_whose_16_bits_leave_the_lowest_loss(here):
    assert evidence.BLOCK in commands()["keep"]
    sensitivity_of(here, [0.3, 0.1, 0.2, 0.1])
    assert "transformer.h.1" in commands(dry_run=False)["keep"]


def test_the_kept_block_needs_the_sensitivity_run():
    with pytest.raises(ConfigError, match="run that first"):
        commands(dry_run=False)


def test_what_was_begun_goes_on_and_what_is_whole_is_left_out(here):
    sensitivity_of(here, [0.0])
    settings = make(name="demo-grid")
    (here / "mlflow_runs" / "sweeps" / "demo-grid").mkdir(parents=True)
    stored.save(settings, here / "mlflow_runs" / "sweeps" / "demo-grid")
    asked, steps, _ = evidence.parsed([*BASE, "--only", "grid,sensitivity,rates"])
    found = [words[:2] for words in evidence.commands_of(asked, steps, dry_run=False)]
    assert found == [["resume", "demo-grid"], ["run", "--name"]]


def test_a_sweep_of_that_name_over_another_base_is_not_gone_on_with(here):
    settings = make(name="demo-grid").model_copy(update={"base_model": "org/other"})
    (here / "mlflow_runs" / "sweeps" / "demo-grid").mkdir(parents=True)
    stored.save(settings, here / "mlflow_runs" / "sweeps" / "demo-grid")
    with pytest.raises(ConfigError, match="is of org/other, not of demo"):
        commands("--only", "grid")


def test_further_flags_go_to_every_run_and_to_nothing_else():
    found = commands("--gpus-per-trial", "0.25")
    assert {step for step, words in found.items() if "--gpus-per-trial" in words} == set(RUNS)


@pytest.mark.parametrize(
    ("base", "prefix"), [("org/Name@main", "name"), ("./some/Folder", "folder"), ("random:./gpt2", "gpt2")]
)
def test_sweeps_are_named_after_their_base(base, prefix):
    asked, _, _ = evidence.parsed(["--base-model", base, "--device", "cpu"])
    assert asked.name("grid") == f"{prefix}-grid"


def test_an_unknown_step_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'rates'"):
        evidence.parsed([*BASE, "--only", "rate"])


@pytest.mark.parametrize("code", [0, 3])
def test_the_first_command_that_fails_ends_it_with_its_exit_code(code, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("sys.argv", ["card-evidence", *BASE, "--only", "grid,sensitivity"])

    def exit_code(words):
        ran.append(words[0])
        return code

    with pytest.raises(SystemExit, match=str(code)) if code else nullcontext():
        evidence.work(exit_code)
    assert ran == (["run", "sensitivity"] if not code else ["run"])
    assert capsys.readouterr().out.count("$ ") == len(ran)
