"""What worker processes take of the host's memory."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.host_memory import PEAK_RESIDENT, largest_mib, without_peak
from orchestrator.cli.progress import print_result
from orchestrator.report import render
from orchestrator.report.content import report_of
from tests.support.sweeps import WORKLOAD, make, snapshot, trial
from trainables.cost.device import own_peak_mib


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux how much memory a process had")
def test_the_peak_is_the_kernels_and_stays_when_memory_is_freed():
    block = np.ones(own_peak_mib() * 2**20 // 8 + 2**23)  # as much again, and 64 MiB
    n_bytes = block.nbytes
    del block
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    assert own_peak_mib() == pytest.approx(int(line.split()[1]) / 1024, abs=8)
    assert own_peak_mib() > n_bytes / 2**20


def test_of_several_worker_processes_the_largest_counts_and_older_trials_say_nothing():
    trials = [trial(i, environment={"device": "CPU", PEAK_RESIDENT: mib}) for i, mib in enumerate(("900", "1020"))]
    assert largest_mib([*trials, trial(2)]) == 1020
    assert largest_mib([trial(2)]) is None
    assert without_peak(trials[0].environment) == without_peak(trials[1].environment) == {"device": "CPU"}


def test_the_result_and_the_report_print_it(capsys):
    trials = [trial(i, environment={"device": "CPU", PEAK_RESIDENT: mib}) for i, mib in enumerate(("900", "1020"))]
    found = snapshot(make(), trials, {"workload": asdict(WORKLOAD), "created_at": 100.0})
    print_result(found, None, as_json=False)
    assert "host memory: at most 1,020 MiB resident in a worker process\n" in capsys.readouterr().out
    report = render.markdown(report_of(found, lambda config: None), {})
    assert "| peak resident memory of the largest worker process | 1,020 MiB |" in report
    assert PEAK_RESIDENT not in report
