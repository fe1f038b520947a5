"""A whole small sweep over a real pretrained SmolLM2-135M and chat rows on a CPU, to its report, card and script."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp

import pytest

from orchestrator.ledger import Ledger
from tests.support.sweeps import Finished, command, environment

FOLDER = "QLORA_SWEEP_SMOLLM2"
BASE = os.environ.get(FOLDER)
N_ROWS = 360
SPACE = """
method: grid
parameters: {precision: {values: [nf4, 16bit]}}
fixed:
  {rank: 4, alpha: 8, targets: [attention], learning_rate: 1.0e-3, batch_size: 2, max_length_tokens: 64, max_steps: 6}
early_terminate: {type: none}
"""
QUESTION = "What is 3 plus 9?"
COVERAGE = "q_proj k_proj v_proj o_proj in 30 of 30 blocks, 25.0 % of their linear weights"
FOUND = f"{N_ROWS} chat rows, {N_ROWS} assistant turns"

pytestmark = pytest.mark.skipif(not BASE, reason=f"{FOLDER} names no folder of SmolLM2-135M-Instruct")


def write_rows(path: Path) -> None:
    """Sums as conversations of at most 64 tokens, the template's own system message included."""
    lines = []
    for n in range(N_ROWS):
        one, other = n % 30, n // 30
        question, answer = f"What is {one} plus {other}?", f"{one} plus {other} is {one + other}."
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Iterator[tuple[Path, Finished]]:
    """A pair of trials, compared and evaluated on the test rows."""
    cwd, logs = tmp_path_factory.mktemp("smollm2"), mkdtemp(prefix="ray", dir="/tmp")
    write_rows(cwd / "sums.jsonl")
    (cwd / "small.yaml").write_text(SPACE)
    inputs = ("--base-model", str(BASE), "--data", "sums.jsonl", "--device", "cpu")
    asked = ("run", "--space", "small.yaml", "--name", "s", *inputs, "--objective", "eval_loss_nats", "--json")
    finished = command(*asked, cwd=cwd, timeout=1800, RAY_TMPDIR=logs)
    print(finished.err)
    yield cwd, finished
    shutil.rmtree(logs, ignore_errors=True)


def test_every_trial_completes_and_the_pair_is_compared(swept):
    cwd, finished = swept
    assert finished.code == 0, finished.err
    with closing(Ledger(cwd / "mlflow_runs" / "sweeps" / "s" / "ledger.db", read_only=True)) as ledger:
        trials, workload = ledger.trials(), ledger.workload()
    assert {trial.state for trial in trials} == {"completed"}
    (quantized,) = [trial for trial in trials if trial.config.precision == "nf4" and trial.origin == "search"]
    assert quantized.similarity.quantized.embedding_cosine.value > 0.5
    assert quantized.test_evaluation.comparison is not None
    assert quantized.test_evaluation.eval_loss_nats < quantized.test_evaluation.untuned_loss_nats
    assert {shift.about for shift in quantized.test_evaluation.bias} == {"gender", "origin", "religion", "age"}
    assert (workload.weights, workload.row_kind) == ("pretrained", "chat")


def test_the_start_and_the_report_say_what_was_read_and_what_adapters_cover(swept):
    cwd, finished = swept
    report = command("report", "s", cwd=cwd).out
    for said in (COVERAGE, FOUND):
        assert said in finished.err
        assert said in report


def test_the_exported_adapter_has_its_loss_and_its_script_answers_by_the_chat_template(swept):
    cwd, _ = swept
    exported = command("export", "s", "d", "--check", "--json", cwd=cwd, timeout=600)
    assert exported.code == 0, exported.err
    assert exported.json["reloaded_loss_nats"] == pytest.approx(exported.json["eval_loss_nats"], abs=1e-3)
    card = (cwd / "d" / "README.md").read_text()
    assert "Prompt: the base's own chat template" in card
    assert COVERAGE in card
    run = [sys.executable, "d/generate.py", QUESTION]
    answer = subprocess.run(run, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr
    print(QUESTION, answer.stdout.strip())
    assert answer.stdout.strip()
    assert "Instruction" not in answer.stdout
