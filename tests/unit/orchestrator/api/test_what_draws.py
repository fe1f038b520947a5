"""What a command imports, and when."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
os.sched_getaffinity = lambda _: set(range(int(sys.argv[1])))
from orchestrator.api import published
drawing = {"matplotlib", "orchestrator.figures.gallery", "orchestrator.report.outputs", "optuna.importance"}
print(sorted(drawing & set(sys.modules)))
published._import_what_draws()
print(drawing <= set(sys.modules), {"torch", "transformers", "mlflow"} & set(sys.modules))
"""


@pytest.mark.parametrize(("n_cores", "is_imported"), [(7, False), (8, True)])
def test_with_a_core_to_spare_a_command_imports_what_draws_before_it_is_needed(n_cores, is_imported):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(n_cores)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", f"{is_imported} set()"]
