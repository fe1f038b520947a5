"""The hub, against a loopback server that answers as the real one does.

Every check runs in a process of its own, since the hub's libraries read their environment at import.
Each of them is given a token, and none may show it anywhere.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.support.hub_server import Repo, hub_server
from tests.support.sweeps import REPO
from trainables.data.hub_models import MODEL_FILES

ROOT = REPO
TOKEN = "hf_canaryCanaryCanary"
LIMIT_SECONDS = 60.0
"""For what takes 10 s at most where nothing else runs; a wait without a bound would be minutes."""
ROWS = [
    {"instruction": f"count to {n}", "input": "", "output": " ".join(map(str, range(n))), "text": "né\n" * (n % 3)}
    for n in range(40)
]
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Rows\n"

FETCH = """
import json, sys, traceback
from trainables.data import hub, hub_models

answers = []
for function, *arguments in json.loads(sys.argv[1]):
    try:
        value = getattr(hub_models if function == "fetch_model" else hub, function)(*arguments)
        answers.append({"value": str(value) if function == "fetch_model" else value})
    except Exception as error:
        traceback.print_exc()
        answers.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(answers))
"""

LIBRARIES_ALONE = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

remote = AutoModelForCausalLM.from_pretrained("tiny/gpt2", trust_remote_code=False)
local = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
assert all(a.equal(b) for a, b in zip(remote.parameters(), local.parameters(), strict=True))
tokenizer = AutoTokenizer.from_pretrained("tiny/gpt2", trust_remote_code=False)
assert tokenizer.decode(tokenizer("Héllo world").input_ids) == "Héllo world"
assert load_dataset("tiny/alpaca", split="train", trust_remote_code=False).num_rows == 40
"""


@dataclass
class Answers:
    """What a process found: one entry a call, and its wall time with interpreter and imports."""

    each: list[dict]
    seconds: float


def run_python(code: str, *args: str, endpoint: str, home: Path, **environment: str) -> tuple[str, float]:
    """Run code in a fresh process that sees only this hub and this cache; its output and seconds."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    environment = inherited | hub | environment
    start = time.monotonic()
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90)
    seconds = time.monotonic() - start
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout, seconds


def fetch(*calls: tuple[str, ...], endpoint: str, home: Path, **environment: str) -> Answers:
    """Call functions of trainables.data.hub in order, in one fresh process."""
    output, seconds = run_python(FETCH, json.dumps(calls), endpoint=endpoint, home=home, **environment)
    return Answers(json.loads(output), seconds)


def assert_unreachable(answers: Answers, calls: tuple[tuple[str, str], ...], endpoint: str) -> None:
    """Every call said in time what it could not reach and what to give instead."""
    advice = {"fetch_model": "BASE_MODEL=/path/to/folder", "fetch_rows": "DATA=/path/to/rows.json"}
    for (function, repo_id), answer in zip(calls, answers.each, strict=True):
        assert answer["error"] == "Unreachable"
        assert all(part in answer["message"] for part in (endpoint, repr(repo_id), advice[function]))
    assert answers.seconds < LIMIT_SECONDS


BOTH = (("fetch_model", "tiny/gpt2"), ("fetch_rows", "tiny/alpaca"))


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """Folders of a hub: by repo id, models first."""
    root = tmp_path_factory.mktemp("repos")
    tiny = root / "gpt2"
    shape = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=300, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(tiny)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["hello world, count to three"] * 2, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(tiny)
    pickled = shutil.copytree(tiny, root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for name in ("pytorch_model.bin", "modeling_evil.py", "onnx/model.onnx", "README.md"):
        (tiny / name).parent.mkdir(exist_ok=True)
        (tiny / name).write_bytes(b"unwanted")
    return {"tiny/gpt2": tiny, "tiny/pickled": pickled, "tiny/gated": tiny}, {
        "tiny/alpaca": parquet_repo(root / "alpaca", "train", CARD),
        "tiny/bare": parquet_repo(root / "bare", "train"),
        "tiny/trainless": parquet_repo(root / "trainless", "test"),
        "tiny/gated": parquet_repo(root / "gated", "train", CARD),
    }


def parquet_repo(folder: Path, split: str, card: str | None = None) -> Path:
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "data" / f"{split}-00000-of-00001.parquet")
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(scope="module")
def warm(repos, tmp_path_factory):
    """A cache that holds both repos, the server it came from gone, and what fetching gave."""
    home = tmp_path_factory.mktemp("warm")
    with hub_server(*repos) as endpoint:
        answers = fetch(*BOTH, ("fetch_rows", "tiny/bare"), endpoint=endpoint, home=home)
    return endpoint, home, answers


def test_a_model_arrives_byte_for_byte_and_nothing_else_of_its_repo(repos, warm):
    folder = Path(warm[2].each[0]["value"])
    arrived = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    source = repos[0]["tiny/gpt2"]
    wanted = [name for pattern in MODEL_FILES for name in source.glob(pattern)]
    assert arrived == {path.name: path.read_bytes() for path in wanted}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(arrived)


def test_rows_arrive_as_they_are_and_in_order_with_a_card_or_without(warm):
    assert warm[2].each[1] == {"value": ROWS}
    assert warm[2].each[2] == {"value": ROWS}


@pytest.mark.slow
def test_the_libraries_themselves_work_against_the_server(repos, tmp_path):
    with hub_server(*repos) as endpoint:
        run_python(LIBRARIES_ALONE, str(repos[0]["tiny/gpt2"]), endpoint=endpoint, home=tmp_path)


def test_a_hub_that_is_gone_leaves_the_cache_usable_soon(warm):
    endpoint, home, first = warm
    again = fetch(*BOTH, endpoint=endpoint, home=home)
    assert again.each == first.each[:2]
    assert again.seconds < LIMIT_SECONDS


def test_a_hub_that_is_gone_is_unreachable_soon_and_says_what_to_give_instead(warm, tmp_path):
    answers = fetch(*BOTH, endpoint=warm[0], home=tmp_path)
    assert_unreachable(answers, BOTH, warm[0])


def test_a_hub_that_hangs_costs_seconds_with_a_cache_or_without(warm, tmp_path):
    with hub_server(hang=True) as endpoint:
        cold, cached = [fetch(*BOTH, endpoint=endpoint, home=home) for home in (tmp_path, warm[1])]
    assert_unreachable(cold, BOTH, endpoint)
    assert cached.each == warm[2].each[:2]
    assert cached.seconds < LIMIT_SECONDS


@pytest.mark.parametrize("how", [{"drip": True}, {"status": 503}, {"blocked": 403}], ids=str)
def test_a_hub_in_trouble_is_unreachable_soon(tmp_path, how):
    with hub_server(**how) as endpoint:
        answers = fetch(BOTH[0], endpoint=endpoint, home=tmp_path)
    assert_unreachable(answers, BOTH[:1], endpoint)
    reason = "no answer in 3 s" if "drip" in how else str(*how.values())
    assert reason in answers.each[0]["message"]
    assert "download" not in answers.each[0]["message"]  # the first question told it


def test_offline_means_that_no_request_is_made(repos, warm, tmp_path):
    log: list[str] = []
    with hub_server(*repos, log=log) as endpoint:
        cached = fetch(*BOTH, endpoint=endpoint, home=warm[1], HF_HUB_OFFLINE="1")
        cold = fetch(*BOTH, endpoint=endpoint, home=tmp_path, HF_HUB_OFFLINE="1")
    assert cached.each == warm[2].each[:2]
    assert [answer["error"] for answer in cold.each] == ["Unreachable", "Unreachable"]
    assert all("HF_HUB_OFFLINE" in answer["message"] for answer in cold.each)
    assert log == []


def test_half_a_cached_model_is_unreachable_not_a_model(repos, warm, tmp_path):
    home = shutil.copytree(warm[1], tmp_path / "home", symlinks=True)
    (weights,) = home.rglob("model.safetensors")
    weights.unlink()
    shutil.rmtree(next(home.glob("hub/models--*/trees")))  # as after a download of the tokenizer alone
    (answer,) = fetch(BOTH[0], endpoint=warm[0], home=home).each
    assert answer["error"] == "Unreachable"


def test_a_repo_that_cannot_be_used_is_an_error_that_names_it_and_the_setting(repos, tmp_path):
    calls = {
        ("fetch_model", "tiny/unknown"): "ConfigError",
        ("fetch_model", "tiny/gated"): "ConfigError",
        ("fetch_model", "tiny/pickled"): "ConfigError",
        ("fetch_model", "not an id"): "ConfigError",
        ("fetch_rows", "tiny/unknown"): "ConfigError",
        ("fetch_rows", "tiny/gated"): "ConfigError",
        ("fetch_rows", "tiny/trainless"): "DataError",
    }
    with hub_server(*repos, gated=["tiny/gated"]) as endpoint:
        answers = fetch(*calls, endpoint=endpoint, home=tmp_path)
    assert [answer.get("error") for answer in answers.each] == list(calls.values())
    for (function, repo_id), answer in zip(calls, answers.each, strict=True):
        assert repr(repo_id) in answer["message"]
        assert answer["message"].startswith("BASE_MODEL: " if function == "fetch_model" else "DATA: ")
    assert "no model.safetensors" in answers.each[2]["message"]
    assert not list(tmp_path.rglob("*.bin"))


def test_a_split_is_read_by_its_name_and_an_unknown_one_is_named(repos, tmp_path):
    splits = ("test", "default/test", "test[:3]", "train", "odd/test")
    calls = [("fetch_rows", "tiny/trainless", split) for split in splits]
    with hub_server(*repos) as endpoint:
        whole, of_config, few, *missing = fetch(*calls, endpoint=endpoint, home=tmp_path).each
    assert whole["value"] == of_config["value"] == ROWS
    assert few["value"] == ROWS[:3]
    for answer, split in zip(missing, splits[3:], strict=True):
        assert answer["error"] == "DataError"
        assert answer["message"].startswith(f"DATA: cannot read split {split!r} of 'tiny/trainless'")
        assert "choose with DATA_SPLIT=SPLIT or CONFIG/SPLIT" in answer["message"]
    again = fetch(*calls[:3], endpoint=endpoint, home=tmp_path).each  # the server is gone
    assert [answer["value"] for answer in again] == [ROWS, ROWS, ROWS[:3]]


def test_shards_arrive_with_their_index_and_no_other_weights(repos, tmp_path):
    sharded = tmp_path / "sharded"
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=300, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(sharded, max_shard_size="200KB")
    (sharded / "consolidated.safetensors").write_bytes(b"a copy in another form")
    shards = {path.name for path in sharded.glob("model-*.safetensors")}
    assert len(shards) > 1
    with hub_server({"tiny/sharded": sharded}) as endpoint:
        (answer,) = fetch(("fetch_model", "tiny/sharded"), endpoint=endpoint, home=tmp_path / "home").each
    arrived = {path.name for path in Path(answer["value"]).iterdir()}
    assert arrived == {"config.json", "generation_config.json", "model.safetensors.index.json", *shards}


def test_a_revision_is_fetched_by_its_name_and_one_that_is_not_there_is_said(repos, tmp_path):
    commit = Repo("models", "tiny/gpt2", repos[0]["tiny/gpt2"]).commit
    calls = [("fetch_model", f"tiny/gpt2@{name}") for name in ("main", commit, "v9")]
    with hub_server(*repos) as endpoint:
        *found, missing = fetch(*calls, endpoint=endpoint, home=tmp_path).each
    assert [Path(answer["value"]).name for answer in found] == [commit, commit]
    assert missing["error"] == "ConfigError"
    assert "'tiny/gpt2' on" in missing["message"]
    assert "no revision 'v9'" in missing["message"]


def test_a_gated_model_is_refused_with_the_hubs_words_and_where_the_token_goes(repos, tmp_path):
    with hub_server(*repos, gated=["tiny/gated"]) as endpoint:
        (answer,) = fetch(("fetch_model", "tiny/gated"), endpoint=endpoint, home=tmp_path).each
    said = ("'tiny/gated' is gated: Access to models tiny/gated is restricted", f"{endpoint}/tiny/gated", "HF_TOKEN")
    assert all(words in answer["message"] for words in said), answer


def test_a_model_larger_than_the_disk_is_refused_before_its_weights_are_fetched(repos, tmp_path):
    log: list[str] = []
    with hub_server(*repos, claimed_bytes={"model.safetensors": 2**60}, log=log) as endpoint:
        (answer,) = fetch(BOTH[0], endpoint=endpoint, home=tmp_path).each
    assert answer["error"] == "DiskFull"
    assert "'tiny/gpt2' is 1073741824.0 GiB to fetch" in answer["message"]
    assert not [line for line in log if "model.safetensors" in line]


def test_a_refused_or_malformed_token_is_not_shown(repos, tmp_path):
    with hub_server(status=401) as endpoint:
        refused = fetch(*BOTH, endpoint=endpoint, home=tmp_path)
    with hub_server(*repos) as endpoint:  # a line tab makes the HTTP client quote the whole header
        malformed = fetch(*BOTH, endpoint=endpoint, home=tmp_path, HF_TOKEN=f"{TOKEN}\v{TOKEN}")
    assert [answer["error"] for answer in refused.each] == ["ConfigError", "ConfigError"]
    assert [answer["error"] for answer in malformed.each] == ["Unreachable", "Unreachable"]


def test_a_password_in_the_endpoint_is_not_shown(tmp_path):
    endpoint = f"http://user:{TOKEN}@127.0.0.1:9"
    answers = fetch(*BOTH, endpoint=endpoint, home=tmp_path)
    assert all("http://127.0.0.1:9 " in answer["message"] for answer in answers.each)


def test_importing_the_module_imports_none_of_the_hubs_libraries(tmp_path):
    code = "import sys, trainables.data.hub; print({'datasets', 'huggingface_hub', 'torch'} & set(sys.modules))"
    output, _ = run_python(code, endpoint="http://127.0.0.1:9", home=tmp_path)
    assert output == "set()\n"
