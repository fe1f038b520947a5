"""What several test modules share: a tiny GPT-2, its tokens, a workload and a cache."""

import gc
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.faults import FAULT, HEADER, line
from trainables.values.config import TrialConfig
from trainables.values.workload import Workload

if TYPE_CHECKING:  # what takes seconds is imported by who uses it: the process that only hands tests out does not
    from trainables.data import tokens as data
    from trainables.data.tokenized import TokenizedData
    from trainables.worker_cache import WorkerCache

REPO = Path(__file__).resolve().parents[1]
REAL_DATA = "QLORA_SWEEP_TEST_DATA"
"""Names the folder of Alpaca's rows and GPT-2's tokenizer; where unset, the one beside the checkout is looked for."""

MANY_OBJECTS = 50_000

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def _heard_interrupts() -> None:
    """A shell's background job ignores Ctrl-C, and so would every process that these tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A GPT-2 of 2 layers x 64 with seeded random weights and the demo's tokenizer.

    Weights are drawn wide, so that logits differ clearly between tokens and gradients get clipped.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainables import demo

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    shape = GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=4,
        n_positions=256,
        vocab_size=1024,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.FOLDER / name, folder)
    return folder


@pytest.fixture(scope="session")
def tokens(tiny_folder, tmp_path_factory) -> "TokenizedData":
    """The demo's rows, split and tokenized."""
    from trainables.data.rows import read_rows
    from trainables.data.tokenized import tokenize

    return tokenize(read_rows("demo"), tiny_folder, tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="session")
def splits(tokens) -> "dict[str, list[data.TokenRow]]":
    from trainables.data import tokens as data

    return data.load(tokens.folder)


@pytest.fixture(scope="session")
def workload(tiny_folder, tokens) -> Workload:
    """The tiny base and the demo's rows in float32."""
    from trainables.models.base_model import BaseModel
    from trainables.models.inputs import Inputs

    base = BaseModel(source=str(tiny_folder), folder=tiny_folder, weights="random")
    return Inputs(
        base=base, fingerprint=base.fingerprint(), rows_source="demo", tokens=tokens, row_kind="Alpaca", rows_found=""
    ).workload("float32")


@pytest.fixture(scope="session")
def cache(workload) -> "WorkerCache":
    """A CPU cache. Who uses it gives both bases back untouched."""
    from trainables.worker_cache import WorkerCache

    return WorkerCache(workload, "cpu")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Alpaca's rows and GPT-2 Medium's tokenizer; a test that needs them is skipped where they are not."""
    folder = Path(os.environ.get(REAL_DATA) or REPO.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{REAL_DATA} names no folder of Alpaca's rows and GPT-2's tokenizer: {folder}")
    return folder


@pytest.fixture
def ray_home(tmp_path, monkeypatch) -> Path:
    """A home folder of its own, without any of Ray's variables."""
    from orchestrator.security import ray_guard

    for name in (ray_guard.MODE, ray_guard.TOKEN, ray_guard.TOKEN_PATH, ray_guard.LOOPBACK):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def small_config():
    """Make a TrialConfig of few, small steps; any field can be given."""

    def make(**values) -> TrialConfig:
        small = {
            "precision": "16bit",
            "rank": 4,
            "alpha": 8,
            "batch_size": 2,
            "max_length_tokens": 64,
            "max_steps": 4,
            "learning_rate": 1e-3,
        }
        return TrialConfig(**{**small, **values})

    return make


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collections of tests need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Nor at what the last test has imported, or brought back by gc.unfreeze; a count of live tensors looks at all."""
    if len(gc.get_objects()) > MANY_OBJECTS:
        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    """The faults that were survived; here, as this process may have run none of the tests itself."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome) if r.when == "call"]
    rows = [cells for report in reports for name, cells in report.user_properties if name == FAULT]
    if rows:
        terminalreporter.section("faults")
        for cells in (HEADER, *rows):
            terminalreporter.line(line(cells))
