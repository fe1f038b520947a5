"""A folder with one sweep of pretended trials in processes of their own, and what its ledger and its log say."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.ledger import Ledger
from orchestrator.verify import checks as verify
from orchestrator.workers import checkpoints
from tests.faults.pretend import noted
from tests.support.stores import place_store
from tests.support.sweeps import PRETEND, Finished, environment
from trainables.values.config import FINAL_STATES
from trainables.values.errors import SweepError
from trainables.values.results import TrialResult

PATIENCE_SECONDS = 240.0
"""For what takes seconds on a machine that has nothing else to do."""


def read(path: Path) -> list[TrialResult]:
    """Trials of a ledger; none where there is none that can be read."""
    try:
        ledger = Ledger(path, read_only=True)
    except SweepError:
        return []
    try:
        return ledger.trials()
    finally:
        ledger.close()


@dataclass
class Place:
    """One sweep, named "s".

    Attributes:
        finished: keys of trials that had ended when a driver was killed; none of them may begin again.
        n_running: trials at work whenever one was killed, added up; so many may be repeated.
    """

    folder: Path
    space: str = "plain"
    variables: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    finished: dict[str, int] = field(default_factory=dict)
    n_running: int = 0
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "mlflow_runs"

    @property
    def sweep(self) -> Path:
        return self.root / "sweeps" / "s"

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    @property
    def gate(self) -> Path:
        """No trial goes beyond its second rung before this file exists."""
        return self.folder.parent / f"{self.folder.name}.gate"

    def start(self, verb: str) -> subprocess.Popen[str]:
        """The driver as a process group of its own."""
        where = [self.address] if self.address else []
        said = self.folder.parent / f"{self.folder.name}.err{len(self._processes)}"
        process = subprocess.Popen(
            [*PRETEND, verb, "s", self.space, *where],
            cwd=self.folder,
            env=environment(PRETEND_LOG=str(self.log), PRETEND_GATE=str(self.gate), **self.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said.open("w"),
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def begin(self) -> subprocess.Popen[str]:
        """Run the sweep, or go on with it where there is one."""
        if not self.root.exists():
            place_store(self.root)
        return self.start("resume" if (self.sweep / "settings.json").exists() else "run")

    def end(self, process: subprocess.Popen[str], *, is_owner: bool = True) -> Finished:
        """Wait for a driver; however the sweep's own one ends, a copy of the one file is the whole ledger."""
        code = process.wait(timeout=PATIENCE_SECONDS)
        if is_owner and (self.sweep / "ledger.db").exists():
            alone = self.folder.parent / f"{self.folder.name}.alone.db"
            shutil.copy(self.sweep / "ledger.db", alone)
            assert read(alone) == self.trials(), "the file alone lacks some of the ledger"
        return Finished(code, "", self.said_by(process), 0.0)

    def said_by(self, process: subprocess.Popen[str]) -> str:
        """What a driver wrote to standard error."""
        n = self._processes.index(process)
        return (self.folder.parent / f"{self.folder.name}.err{n}").read_text(errors="replace")

    @property
    def said(self) -> str:
        """What the last one did."""
        return self.said_by(self._processes[-1])

    def at_second_rung(self) -> list[str]:
        """Keys of trials whose second rung has a checkpoint."""
        return [path.parent.name for path in self.sweep.glob(f"{checkpoints.FOLDER}/*/*2-*")]

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL the driver alone, and take down what was finished and what was running."""
        process.kill()
        process.wait()
        states = Counter(t.state for t in self.trials())
        self.n_running += states["running"]
        self.finished |= {t.key: self.begun[t.key] for t in self.trials() if t.state in FINAL_STATES}

    def trials(self) -> list[TrialResult]:
        """As a copy of the ledger has them; none before there is a ledger."""
        return read(self.sweep / "ledger.db")

    @property
    def begun(self) -> Counter[str]:
        """How often each trial began."""
        return Counter(event["key"] for event in noted(self.log))

    @property
    def repeated(self) -> int:
        return self.begun.total() - len(self.begun)

    def until(self, condition: Callable[[], Any], process: subprocess.Popen[str]) -> bool:
        """Wait for something; False if the driver ended before it came to it."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if condition():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.05)
        raise AssertionError(f"the sweep did not come so far: {self.said[-3000:]}")

    def check(self) -> None:
        """The sweep is whole, no finished trial began again, and no more began again than were at work.

        MLflow may lag behind a sweep that has ended: it is no part of the truth, and is written from the ledger first.
        """
        found = verify.run("s", self.root, repair=True)
        assert not found.differences, "\n".join(map(str, found.differences))
        wrong = [str(difference) for difference in found.repaired or () if difference.part != "MLflow"]
        assert not wrong, "\n".join(wrong)
        again = {key[:12]: n for key, n in self.finished.items() if self.begun[key] > n}
        assert not again, f"finished trials began again: {again}"
        gone = self.finished.keys() - {t.key for t in self.trials() if t.state in FINAL_STATES}
        assert not gone, f"finished trials are lost: {gone}"
        assert self.repeated <= self.n_running, (self.repeated, self.n_running)

    def clear(self) -> None:
        """Leave no process behind."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
