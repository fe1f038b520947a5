"""Exported adapters: really trained on the demo, read back through peft and transformers alone."""

import ast
import json
import logging
import runpy
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator import settings as settings_file
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger, adapter_store
from orchestrator.report import export
from orchestrator.settings import stored
from tests.support.hub_server import Answer, as_error, as_json, handler_of, hub_server
from tests.support.in_process import called
from tests.support.sweeps import WORKLOAD, command, environment, make, snapshot
from trainables.comparison import exported
from trainables.data import tokens
from trainables.data.alpaca import Row
from trainables.evaluation import held_out
from trainables.models import base_model, inputs
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError, SweepError
from trainables.worker_cache import WorkerCache

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8, learning_rate=1e-2, batch_size=4, max_length_tokens=64, max_steps=4)
CONFIGS = (NF4, NF4.at_other_precision)
PRUNED = replace(NF4, rank=2)
DTYPES = {"nf4": "uint8", "16bit": "float32"}


def train(config, cache, ledger, folder):
    """What a worker and the driver do of one trial, in this process."""
    key = cache.workload.key(config)
    ledger.add(key, config, params={}, origin="search")
    ledger.start(key)
    training = Trial(config, cache)
    ledger.keep_cost(config.cost_key, training.cost)
    for measurement in training.measurements():
        ledger.record(key, measurement)
    sha256 = adapter_store.write(folder / "adapters", key, training.adapter_files())
    training.close()
    ledger.finish(key, "completed", adapter_sha256=sha256, train_seconds=1.0, environment={"device": "CPU"})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A sweep over the demo: one trial at each precision, and one that was pruned."""
    root = tmp_path_factory.mktemp("export") / "mlflow_runs"
    folder = settings_file.sweep_folder("t", root)
    stored.save(make(objectives=("eval_loss_nats",)), folder)
    workload = inputs.fetch("demo", "demo", root / "cache").workload("float32")
    cache = WorkerCache(workload, "cpu")
    ledger = Ledger(folder / "ledger.db")
    ledger.set_fact("workload", asdict(workload))
    for config in CONFIGS:
        train(config, cache, ledger, folder)
    key = workload.key(PRUNED)
    ledger.add(key, PRUNED, params={}, origin="search")
    ledger.start(key)
    ledger.finish(key, "pruned", reason="loss 9.5 nats at step 2 is too high")
    ledger.close()
    return root


@pytest.fixture(scope="module")
def sweep(root):
    """Its workload and trials."""
    ledger = Ledger(settings_file.sweep_folder("t", root) / "ledger.db", read_only=True)
    return ledger.workload(), ledger.trials()


def of(which: object) -> export.Which:
    """A trial by number or key."""
    return export.Which(trial=str(which))


def copied(root, tmp_path):
    """The same sweep, to be changed."""
    shutil.copytree(root / "sweeps", tmp_path / "mlflow_runs" / "sweeps")
    return tmp_path / "mlflow_runs"


# --- what is exported is what was trained


def run(script: Path) -> None:
    """Run an exported script in this process, which it leaves as it was."""
    with warnings.catch_warnings():
        try:
            runpy.run_path(str(script))
        finally:
            logging.disable(logging.NOTSET)


@pytest.mark.parametrize("number", [0, 1], ids=["nf4", "16bit"])
def test_the_reloaded_adapter_has_the_recorded_loss_and_its_script_and_card_are_its_own(
    root, sweep, tmp_path, number, monkeypatch, capsys
):
    workload, trials = sweep
    trial, dest = trials[number], tmp_path / "new" / "d"
    done = export.run("t", dest, of(number), root, check=True)
    base = base_model.load(workload, trial.config.precision, "cpu")
    rows = tokens.load(workload.data_folder)["validation"]
    untuned = held_out.eval_loss(base, rows)
    model = PeftModel.from_pretrained(base, dest).eval()
    recorded = trial.history[-1].eval_loss_nats
    assert held_out.eval_loss(model, rows) == pytest.approx(recorded, abs=1e-3)
    assert done["reloaded_loss_nats"] == pytest.approx(recorded, abs=1e-3)
    assert abs(untuned - recorded) > 0.01  # without its adapter the base would not pass

    question = "Name three colours."
    tokenizer = AutoTokenizer.from_pretrained(dest, trust_remote_code=False)
    ids = tokenizer(Row(instruction=question, input="", output="").prompt, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    monkeypatch.setattr("sys.argv", ["generate.py", question])
    capsys.readouterr()
    run(dest / "generate.py")
    answer = tokenizer.decode(expected[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer
    assert capsys.readouterr().out.strip() == answer.strip()
    assert len((dest / "generate.py").read_text().splitlines()) <= 26

    card = ModelCard.load(dest / "README.md")
    assert f"trial {number} (key `{trial.key[:16]}`)" in card.text
    assert f"loss {recorded:.4f} nats on the validation rows" in card.text
    usage = card.text.split("## How to use")[1].split("\n## ")[0]
    assert 'python generate.py "Name three colours."' in usage
    needed = NEEDED[trial.config.precision, False]
    assert f"pip install {' '.join(needed)}" in usage
    assert "**The base\nwas read from a folder**" in usage
    assert str(workload.base_folder) not in card.text


def test_the_script_prints_the_answer_and_no_library_a_warning(root, tmp_path):
    export.run("t", tmp_path / "d", of(0), root)  # at 4 bits, with bitsandbytes
    words = [sys.executable, str(tmp_path / "d" / "generate.py"), "Name three colours."]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 1), ended.stderr
    said = ended.stderr.replace("\r", "\n").splitlines()
    assert [line for line in said if line and not line.startswith("Loading weights")] == []


NEEDED = {
    ("nf4", False): ["accelerate", "bitsandbytes", "peft", "torch", "transformers"],
    ("16bit", False): ["accelerate", "peft", "torch", "transformers"],
    ("nf4", True): ["accelerate", "torch", "transformers"],
}


@pytest.mark.parametrize(("precision", "merged"), NEEDED)
def test_the_script_says_in_one_line_how_it_is_used_and_what_it_lacks(precision, merged, tmp_path):
    script, packages = tmp_path / "generate.py", tmp_path / "packages"
    script.write_text(export.script((precision, ()), WORKLOAD, merged=merged))

    def said(*arguments):
        bare = [sys.executable, "-S", str(script)]  # without the packages of this environment
        ended = subprocess.run([*bare, *arguments], env={"PYTHONPATH": str(packages)}, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        (line,) = ended.stderr.splitlines()
        return line

    for arguments in ((), ("Name", "three", "colours."), ("--help",), ("-h",)):
        assert 'python generate.py "Name three colours."' in said(*arguments)
    needed = NEEDED[precision, merged]
    assert said("Name three colours.").endswith(f"-m pip install {' '.join(needed)}")
    for name in needed[1:]:
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    assert said("Name three colours.").endswith(f"-m pip install {needed[0]}")


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)
READ = {"chat": "<|user|>Name three colours.<|a|>", "completion": "Name three colours."}


@pytest.mark.parametrize("kind", READ)
def test_the_script_asks_in_the_form_of_the_rows_that_were_trained_on(kind, root, sweep, tmp_path, monkeypatch, capsys):
    workload, _ = sweep
    base = shutil.copytree(workload.base_folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHATML)
    other = replace(workload, base_folder=str(base), row_kind=kind)
    (key,) = [entry.result.key for entry in SweepSnapshot.read("t", root).entries if entry.result.number == 1]
    files = adapter_store.read(root / "sweeps" / "t" / "adapters", key)
    export.write(tmp_path / "d", ("16bit", ()), other, files, "card", merge=False)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model = PeftModel.from_pretrained(base_model.load(other, "16bit", "cpu"), tmp_path / "d").eval()
    ids = tokenizer(READ[kind], return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    monkeypatch.setattr("sys.argv", ["generate.py", "Name three colours."])
    capsys.readouterr()
    run(tmp_path / "d" / "generate.py")
    answer = tokenizer.decode(expected[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == answer.strip()


@pytest.mark.parametrize("number", [0, 1], ids=["nf4", "16bit"])
def test_merged_weights_are_16_bit_and_keep_the_recorded_loss_without_peft(root, sweep, tmp_path, number):
    workload, trials = sweep
    export.run("t", tmp_path / "d", of(number), root, merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "d" / "merged", dtype="auto", trust_remote_code=False)
    assert {p.dtype for p in merged.parameters()} == {torch.float16}
    loss = held_out.eval_loss(merged.float(), tokens.load(workload.data_folder)["validation"])
    assert loss == pytest.approx(trials[number].history[-1].eval_loss_nats, abs=1e-3)
    assert "peft" not in (tmp_path / "d" / "generate.py").read_text()
    assert (tmp_path / "d" / "adapter_model.safetensors").is_file()


def test_export_says_what_it_wrote_and_what_the_demo_is_worth_and_no_library_says_anything(root, tmp_path):
    words = ("export", "t", str(tmp_path / "d"), "--trial", "0", "--check", "--merge")
    done = command(*words, cwd=root.parent)
    worth = "most of what it answers is wrong; measured on: the embedded demo model, not GPT-2 Medium"
    assert (done.code, " ".join(done.err.split())) == (0, worth)
    assert [line.partition(" ")[0] for line in done.out.splitlines()] == ["trial", "it", "read"]


def test_export_without_a_trial_writes_the_one_that_best_names_and_says_why(root, sweep, tmp_path):
    lowest = min(sweep[1][:2], key=lambda t: t.history[-1].eval_loss_nats)
    by_key = export.run("t", tmp_path / "a", of(lowest.key[:8]), root)
    assert (by_key["key"], by_key["why"]) == (lowest.key, "as asked for")
    assert sweep[1][1].similarity is None  # so that the 4-bit trial does not count, whatever its loss
    named = called("best", "t", "--json", cwd=root.parent).json
    exported = called("export", "t", str(tmp_path / "b"), "--max-memory", "1TiB", cwd=root.parent)
    assert exported.code == 0, exported.err
    assert named["key"] == sweep[1][1].key
    limit = ", of those that need at most 1048576.0 MiB"
    assert exported.out.startswith(f"trial {named['number']}: {named['why']}{limit}\n")
    assert (tmp_path / "b" / "adapter_config.json").is_file()


def test_a_trial_that_is_named_is_not_chosen_as_well(root, tmp_path):
    for asked in (export.Which(trial="1", at_knee=True), export.Which(trial="1", max_memory_mib=9.0)):
        with pytest.raises(ConfigError, match="'1' names the trial; say either that, or --max-memory and --knee"):
            export.run("t", tmp_path / "d", asked, root)


# --- refusals


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("2", "trial 2 is pruned \\(loss 9.5 nats at step 2 is too high\\)"),
        ("9", "no trial '9'.*have: 0, 1, best"),
        ("bets", "did you mean 'best'"),
        ("", "no trial ''"),
        ("ffffffffff", "no trial"),
    ],
)
def test_a_trial_without_an_adapter_is_refused_and_nothing_is_written(root, tmp_path, which, said):
    with pytest.raises(ConfigError, match=said):
        export.run("t", tmp_path / "d", of(which), root)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_several_trials_begin_with_is_refused(root, sweep):
    trials = [replace(t, key=f"abcdef{n}" + 57 * "0") for n, t in enumerate(sweep[1][:2], start=1)]
    with pytest.raises(ConfigError, match="2 trials begin with 'abcdef'"):
        export.chosen(of("abcdef"), snapshot(make(), trials, {}))
    assert export.chosen(of("abcdef2"), snapshot(make(), trials, {}))[0].key == trials[1].key


def test_a_folder_that_holds_something_is_left_as_it_is_and_an_empty_one_is_filled(root, tmp_path):
    dest = tmp_path / "d"
    dest.mkdir()
    (dest / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export.run("t", dest, of(1), root)
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "mine"]
    (dest / "mine").unlink()
    export.run("t", dest, of(1), root)
    assert (dest / "adapter_config.json").is_file()


def test_an_adapter_that_is_not_the_recorded_one_is_refused(root, sweep, tmp_path):
    changed = copied(root, tmp_path)
    weights = settings_file.sweep_folder("t", changed) / "adapters" / sweep[1][1].key / adapter_store.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="not the one"):
        export.run("t", tmp_path / "d", of(1), changed)
    weights.unlink()
    with pytest.raises(ConfigError, match="no adapter"):
        export.run("t", tmp_path / "d", of(1), changed)
    assert not (tmp_path / "d").exists()


def test_an_export_that_fails_half_way_leaves_nothing(root, sweep, tmp_path):
    changed = copied(root, tmp_path)
    (settings_file.sweep_folder("t", changed) / "adapters" / sweep[1][1].key / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        export.run("t", tmp_path / "d", of(1), changed, merge=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow_runs"]


def test_a_loss_that_is_not_the_recorded_one_is_an_error(root, sweep, tmp_path):
    workload, trials = sweep
    export.run("t", tmp_path / "d", of(1), root)
    wrong = trials[0].history[0].eval_loss_nats + 1
    with pytest.raises(SweepError, match="when read back"):
        exported.checked_loss_nats(tmp_path / "d", trials[1].config.base_form, wrong, workload)


def test_a_base_that_moved_is_fetched_again_and_must_be_the_same(sweep, tmp_path):
    gone = replace(sweep[0], base_folder=str(tmp_path / "gone"))
    assert exported.with_base(gone, tmp_path) == sweep[0]
    with pytest.raises(ConfigError, match="not what the sweep was run on"):
        exported.with_base(replace(gone, base_fingerprint="0" * 64), tmp_path)


# --- pushing


@contextmanager
def upload_hub(stored: dict[str, bytes], log: list[str]):
    """A hub on the loopback that takes one commit of small files."""

    def answer(target: str, body: bytes, _: str | None) -> Answer:
        if target == "/api/repos/create":
            stored["create"] = body
            return as_json({"url": f"{endpoint}/me/mine", "name": "me/mine"})
        if target == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if "/preupload/" in target:
            names = [file["path"] for file in json.loads(body)["files"]]
            return as_json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in target:
            stored["commit"] = body
            return as_json({"commitUrl": f"{endpoint}/me/mine/commit/{'a' * 40}", "commitOid": "a" * 40})
        if "/revision/" in target:
            return as_json({"id": "me/mine", "sha": "a" * 40, "siblings": []})
        return as_error(404, "EntryNotFound", "no such address")

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(answer, log))
    endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_nothing_is_pushed_unless_asked_and_then_the_whole_folder_into_a_private_repo(root, sweep, tmp_path):
    changed = copied(root, tmp_path)
    cached = tmp_path / "models--tiny--gpt2" / "snapshots" / "abc"
    shutil.copytree(sweep[0].base_folder, cached, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    ledger = Ledger(settings_file.sweep_folder("t", changed) / "ledger.db")
    ledger.set_fact("workload", asdict(replace(sweep[0], base_model="tiny/gpt2", base_folder=str(cached))))
    ledger.close()
    stored, log = {}, []
    with upload_hub(stored, log) as endpoint:
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
        kept = command("export", "t", "kept", "--trial", "1", cwd=tmp_path, **hub)
        assert kept.code == 0, kept.err
        assert log == []
        done = command("export", "t", "d", "--trial", "1", "--push", "me/mine", "--json", cwd=tmp_path, **hub)
    assert done.code == 0, (done.err, log)
    assert done.json["url"] == f"{endpoint}/me/mine"
    assert json.loads(stored["create"])["visibility"] == "private"
    lines = [json.loads(line) for line in stored["commit"].splitlines()]
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {path.name for path in (tmp_path / "d").iterdir()}
    script = (tmp_path / "d" / "generate.py").read_text()
    assert "from_pretrained('tiny/gpt2', " in script
    assert str(tmp_path) not in script + (tmp_path / "d" / "README.md").read_text()


def test_a_base_that_nobody_else_has_is_not_pushed(root, tmp_path):
    with pytest.raises(ConfigError, match="on this machine only"):
        export.run("t", tmp_path / "d", of(1), root, push="me/mine")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("repo", "status", "said"),
    [("me/mine", 401, "ConfigError"), ("a/b/c", None, "ConfigError"), ("me/mine", None, "Unreachable")],
)
def test_a_push_that_cannot_be_is_an_error_that_keeps_the_token_to_itself(tmp_path, repo, status, said):
    code = f"from trainables.data import hub\ntry:\n    hub.push_model({str(tmp_path)!r}, {repo!r})\n"
    code += "except Exception as e:\n"
    code += "    print(type(e).__name__, e)"
    with hub_server(status=status) as endpoint:
        address = endpoint if status else "http://127.0.0.1:9"  # nobody listens there
        hub = environment(HF_ENDPOINT=address, HF_HOME=str(tmp_path), HF_TOKEN="hf_secret", HF_HUB_OFFLINE="0")
        done = subprocess.run([sys.executable, "-c", code], env=hub, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{said} PUSH: "), done
    assert "hf_secret" not in done.stdout + done.stderr


def test_the_script_of_an_adapter_whose_base_kept_modules_at_16_bits_keeps_them_and_the_head(workload):
    text = export.script(("nf4", ("transformer.h.0",)), workload, merged=False)
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword)]
    (skipped,) = [ast.literal_eval(node.value) for node in calls if node.arg == "llm_int8_skip_modules"]
    assert {"lm_head", "transformer.h.0\\."} <= set(skipped)
    assert "llm_int8" not in export.script(("nf4", ("transformer.h.0",)), workload, merged=True)
