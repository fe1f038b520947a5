"""The options of `run` are the fields of the settings."""

from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from orchestrator.cli import group
from orchestrator.cli.options import WITHOUT_FLAG, in_flags, with_settings
from orchestrator.settings import SweepSettings
from trainables.values.errors import Interrupted


class Settings(BaseModel):
    """A field of each kind, none of which the program knows."""

    n_cups: int = Field(default=1, description="of tea")
    warmth: float | None = Field(default=None, description="in degrees")
    kind: Literal["green", "black"] = Field(default="green", description="green or black")
    guests: tuple[str, ...] = Field(default=(), description="repeat for several")
    with_milk: bool = Field(default=False, description="pour milk")
    wash: bool = Field(default=True, description="wash the cups")


@pytest.fixture
def app():
    """A command over made-up settings; `app.given` is what it was handed last."""
    made = typer.Typer()

    def serve(given: dict[str, Any], where: str = "here") -> None:
        """Serve tea."""
        made.given = given | {"where": where}

    made.command()(with_settings(serve, Settings.model_fields))
    return made


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--n-cups", "3"], {"n_cups": 3}),
        (["--warmth", "60"], {"warmth": 60.0}),
        (["--kind", "red"], {"kind": "red"}),
        (["--guests", "Ann", "--guests", "Bo"], {"guests": ["Ann", "Bo"]}),
        (["--with-milk"], {"with_milk": True}),
        (["--no-wash"], {"wash": False}),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_a_new_field_is_an_option_of_its_name_and_kind_whose_value_is_handed_on(words, given, app):
    assert CliRunner().invoke(app, words).exit_code == 0
    assert app.given == given | {"where": "here"}


def test_a_fields_description_is_its_help_and_a_flag_that_turns_it_off_says_so(app):
    lines = CliRunner().invoke(app, ["--help"]).stdout.splitlines()
    helps = {line.split()[1]: line for line in lines if " --" in line}
    assert "of tea" in helps["--n-cups"]
    assert "do not wash the cups" in helps["--no-wash"]


def test_a_number_that_is_none_is_refused_with_the_name_of_its_flag(app):
    refused = CliRunner().invoke(app, ["--n-cups", "many"])
    assert refused.exit_code == 2
    assert "--n-cups" in refused.output


def test_every_setting_has_a_description_and_is_an_option_of_run_but_for_those_named():
    assert all(field.description for field in SweepSettings.model_fields.values())
    options = {parameter.name for parameter in group.load("run").params}
    assert SweepSettings.model_fields.keys() - options == WITHOUT_FLAG
    assert options - SweepSettings.model_fields.keys() == {"sampler", "dry_run", "gpu", "as_json"}


def test_an_interruption_is_said_once_and_as_it_is():
    def stop(where: str = "here") -> None:
        raise Interrupted("where: go on with resume")

    with pytest.raises(Interrupted) as stopped:
        in_flags(stop)()
    assert str(stopped.value) == "interrupted; where: go on with resume"
