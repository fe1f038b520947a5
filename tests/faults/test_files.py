"""Files and what is around them: damaged state, a full disk, bad rows, bad command lines."""

import json
import math
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator import settings
from orchestrator.ledger import Ledger
from orchestrator.settings import stored
from orchestrator.tracking.publishing import publish
from orchestrator.verify import checks as verify
from orchestrator.workers import checkpoints
from tests.faults.place import Place
from tests.support.bad_inputs import BAD_DATA, BAD_ROWS, BAD_SETTINGS, BAD_SPACES, space_text
from tests.support.stores import place_store
from tests.support.sweeps import GRID, WORKLOAD, Desk, command, completes, make
from trainables import demo
from trainables.data.rows import read_rows
from trainables.data.splits import SPLIT_ROWS, split_rows
from trainables.values.config import FINAL_STATES
from trainables.values.errors import SweepError, TrialFailed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The root of a finished sweep "t" with its files and MLflow runs."""
    root = tmp_path_factory.mktemp("whole") / "mlflow_runs"
    asked = make(GRID, n_trials=3)
    folder = settings.sweep_folder("t", root)
    stored.save(asked, folder)
    desk = Desk(folder, asked)
    for name, value in {"id": "abc", "created_at": 1.0, "workload": asdict(WORKLOAD), "data_counts": {}}.items():
        desk.ledger.set_fact(name, value)
    desk.finish(lambda task: completes(task, loss=2.0 + 1 / task.config.rank))
    desk.ledger.close()
    place_store(root)
    publish(asked, root, interrupted=False)
    assert not verify.run("t", root).differences
    return root


def said_of(root: Path) -> list[str]:
    """What verify says, in whatever way; an error that is not ours goes through."""
    try:
        return [str(difference) for difference in verify.run("t", root).differences]
    except SweepError as error:
        return [str(error)]


DRAWN = {".md", ".html", ".png", ".txt"}
"""Made for readers; `report` draws them again, and nothing reads them."""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "zeroed"])
def test_every_damaged_state_file_is_named_and_projections_are_repaired(damage, whole, tmp_path, survived):
    """Each in turn; the ledger and the settings cannot be rebuilt, and are never taken for a new sweep's."""
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.suffix not in DRAWN and path.parts[0] in ("sweeps", "mlflow.db")]
    seen = Counter()
    for path in files:
        seen[path.name] += 1
        if seen[path.name] > 1:
            continue  # one adapter stands for all
        root = tmp_path / path.name / "mlflow_runs"  # MLflow keeps files open by their path
        shutil.copytree(whole, root)
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) // 2] if damage == "truncated" else bytes(len(content)))
        said = said_of(root)
        assert said, f"{path}, {damage}, was not noticed"
        if path.name == "ledger.db":
            with pytest.raises(SweepError, match="no readable ledger"):
                Ledger(root / path)
        elif path.suffix in (".json", ".parquet") and path.name != "settings.json":
            assert not verify.run("t", root, repair=True).differences
    survived(f"each kind of state file {damage} in turn", len(seen), lost=0, repeated=0)


@pytest.mark.slow
def test_a_ledger_without_content_is_never_taken_for_a_new_sweeps(place, survived):
    """The stock tuner starts afresh, with exit code 0."""
    place.gate.touch()
    driver = place.begin()
    place.until(lambda: any(t.state == "completed" for t in place.trials()), driver)
    place.kill(driver)
    kept = place.folder / "kept"
    shutil.copytree(place.sweep, kept)
    for path in place.sweep.glob("ledger.db*"):
        path.unlink()
    (place.sweep / "ledger.db").touch()
    ended = place.end(place.begin())
    assert ended.code == 1
    assert "has lost its content" in ended.err
    assert "Traceback" not in ended.err
    shutil.rmtree(place.sweep)
    kept.rename(place.sweep)
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    survived("a ledger emptied between kill and resume", lost=0, repeated=place.repeated)


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of so many MiB; skips where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until there is no space left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_with_its_own_code_and_resume_goes_on_once_there_is_space(tmp_path, survived):
    with small_disk(tmp_path / "disk", mib=24) as folder:
        place = Place(folder, variables={"PRETEND_SECONDS": "0.4", "PRETEND_TRIALS": "8"})
        try:
            place.gate.touch()
            driver = place.begin()
            place.until(lambda: any(t.state == "completed" for t in place.trials()), driver)
            fill(folder / "ballast")
            ended = place.end(driver)
            assert ended.code == 4, (ended.code, ended.err)
            assert "Traceback" not in ended.err
            (folder / "ballast").unlink()
            place.finished = {t.key: place.begun[t.key] for t in place.trials() if t.state in FINAL_STATES}
            place.n_running = place.begun.total() - len(place.finished)
            assert place.finished
            assert place.end(place.begin()).code == 0, place.said
            place.check()
            survived("a small tmpfs filled and freed", lost=0, repeated=place.repeated)
        finally:
            place.clear()


@pytest.mark.slow
def test_nan_at_a_chosen_step_ends_its_trial_there_and_the_next_is_as_on_a_new_worker(cache, small_config, survived):
    import torch

    from tests.support.sweeps import cost
    from trainables.trial import Trial

    def run(config, *, poison_after: int | None = None) -> list[float]:
        trial, found = Trial(config, cache, cost=cost()), []
        try:
            for measurement in trial.measurements():
                found.append(measurement.eval_loss_nats)
                if measurement.step == poison_after:
                    with torch.no_grad():
                        trial._training.engine.parameters[0].fill_(math.nan)
        finally:
            trial.close()
        return found

    config = small_config(max_steps=4)
    expected = run(config)
    for step in (1, 2):
        with pytest.raises(
            TrialFailed, match=f"not finite at step {2 * step}: training loss from step {step + 1}"
        ) as e:
            run(config, poison_after=step)
        assert e.value.state == "diverged"
    assert run(config) == expected
    survived("NaN at a chosen step", 2, lost=0, repeated=0)


def test_one_percent_of_bad_rows_of_each_kind_is_dropped_and_counted(tmp_path, survived):
    rows = json.loads(demo.ROWS_FILE.read_text())
    n_bad = len(rows) // 100
    for kind, bad in BAD_ROWS.items():
        mixed = [bad if i % 100 == 7 and i // 100 < n_bad else row for i, row in enumerate(rows)]
        (tmp_path / "rows.json").write_text(json.dumps(mixed))
        checked = read_rows(str(tmp_path / "rows.json"))
        assert checked.dropped == {kind: n_bad}
        assert len(checked.rows) == len(rows) - n_bad
        assert {name: len(part) for name, part in split_rows(checked.rows).items()} == SPLIT_ROWS
    survived("1 % of bad rows of each kind", len(BAD_ROWS), lost=0, repeated=0)


MORE_COMMAND_LINES = {
    "a sweep that is not there": (["resume", "nothing"], ["NAME", "no sweep 'nothing'"]),
    "a name out of the folder": (["status", "../../etc"], ["NAME", "'../../etc'"]),
    "a command that is not there": (["runn"], ["runn"]),
    "a number that is none": (["run", "--trials", "many"], ["--trials", "whole number"]),
    "a seed below 0": (["run", "--seed", "-1"], ["seed", "-1"]),
    "a precision of arithmetic that is not there": (["run", "--compute-dtype", "int8"], ["compute_dtype", "int8"]),
    "captured steps without a GPU": (["run", "--engine", "graph", "--device", "cpu"], ["engine", "GPU"]),
}


@pytest.mark.slow
def test_every_bad_command_line_and_file_is_named_at_once_and_without_a_traceback(tmp_path, survived):
    """Those of test_cli.py and some more; prints the worst time beyond that of --help."""
    cases = [(["run", *arguments], words, 2) for arguments, words in BAD_SETTINGS.values()]
    cases += [(arguments, words, 2) for arguments, words in MORE_COMMAND_LINES.values()]
    for i, (changes, words) in enumerate(BAD_SPACES.values()):
        (tmp_path / f"{i}.yaml").write_text(space_text(changes))
        cases.append((["run", "--space", f"{i}.yaml"], words, 2))
    for name, (content, words) in BAD_DATA.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        cases.append((["run", "--data", name], [words], 3))
    start = min(command("--help", cwd=tmp_path).seconds for _ in range(3))
    worst = 0.0
    for arguments, words, code in cases:
        ended = command(*arguments, cwd=tmp_path)
        assert ended.code == code, (arguments, ended.err)
        assert all(word in ended.err.replace(",", "") or word in ended.err for word in words), (arguments, ended.err)
        assert "Traceback" not in ended.err
        worst = max(worst, ended.seconds - start if code == 2 else 0.0)
    assert len(cases) >= 30
    survived(f"bad command lines and files (worst {worst:.1f} s beyond --help)", len(cases), lost=0, repeated=0)


@pytest.mark.slow
def test_an_unreachable_hub_matters_only_where_nothing_is_cached(tmp_path, survived):
    import pandas

    from tests.support.hub_server import hub_server

    rows = tmp_path / "rows" / "data"
    rows.mkdir(parents=True)
    pandas.DataFrame(json.loads(demo.ROWS_FILE.read_text())).to_parquet(rows / "train-00000-of-00001.parquet")
    variables = {"HF_HOME": str(tmp_path / "hf"), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    asked = ("run", "--base-model", "tiny/gpt2", "--data", "tiny/alpaca", "--trials", "1", "--steps", "2")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    cold = command(*asked, "--name", "cold", cwd=tmp_path, **variables | nowhere)
    assert cold.code == 5, cold.err
    assert "Traceback" not in cold.err
    with hub_server(models={"tiny/gpt2": demo.FOLDER}, datasets={"tiny/alpaca": rows.parent}) as endpoint:
        assert command(*asked, "--name", "first", cwd=tmp_path, HF_ENDPOINT=endpoint, **variables).code == 0
    warm = command(*asked, "--name", "warm", "--no-reuse", cwd=tmp_path, **variables | nowhere)
    assert warm.code == 0, warm.err
    survived("hub unreachable, cache cold and warm", 2, lost=0, repeated=0)


REAL = """
method: grid
parameters: {rank: {values: [4]}, precision: {values: [16bit]}}
fixed: {alpha: 8, dropout: 0.1, learning_rate: 1.0e-3, batch_size: 4, max_length_tokens: 64, max_steps: 600}
early_terminate: {type: none}
"""


@pytest.mark.slow
def test_a_real_trial_whose_worker_is_killed_over_a_damaged_checkpoint_has_the_losses_of_one_left_alone(
    tmp_path, survived
):
    """A bit of the newest checkpoint is flipped, so that it goes on from the one before."""
    import signal

    import psutil
    import torch

    from tests.support.sweeps import start
    from trainables.trial import Trial
    from trainables.worker_cache import WorkerCache

    (tmp_path / "real.yaml").write_text(REAL)
    driver = start("run", "--space", "real.yaml", "--name", "a", cwd=tmp_path)
    sweep = tmp_path / "mlflow_runs" / "sweeps" / "a"
    try:
        end = time.monotonic() + 240
        while len(kept := sorted(sweep.glob(f"{checkpoints.FOLDER}/*/*.safetensors"))) < 2:
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        workers = [
            p for p in psutil.Process(driver.pid).children(recursive=True) if "Trainable" in "".join(p.cmdline())
        ]
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        kept = sorted(sweep.glob(f"{checkpoints.FOLDER}/*/*.safetensors"))
        content = bytearray(kept[-1].read_bytes())
        content[len(content) // 2] ^= 4
        kept[-1].write_bytes(content)
        for worker in workers:
            worker.kill()
        _, err = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, err
    ledger = Ledger(sweep / "ledger.db", read_only=True)
    (trial,) = [t for t in ledger.trials() if t.origin == "search"]
    workload = ledger.workload()
    ledger.close()
    assert trial.environment["continued_from_step"] == str(int(kept[0].name.split("-")[0]))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        alone = Trial(trial.config, WorkerCache(workload, "cpu"), cost=trial.cost)
        expected = [(m.step, m.train_loss_nats, m.eval_loss_nats) for m in alone.measurements()]
        alone.close()
    finally:
        torch.set_num_threads(n_threads)
    assert [(m.step, m.train_loss_nats, m.eval_loss_nats) for m in trial.history] == expected
    survived("a real worker SIGKILLed, its newest checkpoint's bit flipped", lost=0, repeated=1)
