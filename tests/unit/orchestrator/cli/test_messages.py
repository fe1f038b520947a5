"""What a command logs comes out on standard error: the words alone, without secrets."""

import io
import logging
import sys

import pytest

from orchestrator.cli import messages
from tests.support.sweeps import command


@pytest.fixture
def logger():
    return logging.getLogger("orchestrator.some.module")


def test_a_message_is_shown_as_its_words_alone_while_a_command_works_and_no_more_afterwards(logger, capsys):
    with messages.shown():
        logger.info("%d rows", 3)
        logger.warning("100 % of them")
    logger.info("unheard")
    assert capsys.readouterr() == ("", "3 rows\n100 % of them\n")


def test_a_secret_of_the_environment_is_cut_out_of_a_message(logger, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    with messages.shown():
        logger.warning("MLflow says %s", ValueError("no user with correct-horse"))
    assert capsys.readouterr().err == "MLflow says no user with ***\n"


def test_what_stands_in_the_place_of_standard_error_gets_the_message(logger, monkeypatch):
    with messages.shown():
        view = io.StringIO()
        monkeypatch.setattr(sys, "stderr", view)  # as rich's live view does while it is shown
        logger.info("above the view")
    assert view.getvalue() == "above the view\n"


def test_another_librarys_information_is_not_shown(capsys):
    with messages.shown():
        logging.getLogger("another").info("unheard")
    assert capsys.readouterr().err == ""


LIBRARY = """
import logging, warnings
from orchestrator.cli.main import main
def work():
    logging.getLogger("another").warning("Failed to load a kernel that nobody needs")
    warnings.warn("this will change some day", FutureWarning)
    from transformers.utils import logging as theirs
    theirs.get_logger("transformers.some.module").warning("We strongly recommend")
    logging.getLogger("another").error("broken")
    logging.getLogger("orchestrator.some.module").info("ours")
main(work)
"""


def test_of_other_libraries_a_command_shows_errors_alone(tmp_path):
    finished = command(cwd=tmp_path, program=(sys.executable, "-c", LIBRARY))
    assert finished.err == "broken\nours\n"
