"""The frozen base: found, drawn at random, loaded at 16 bits or quantized to NF4."""

import gc
import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.support.nf4 import BLOCK, blocks_of, nf4_code_book, nf4_with_double_quantization
from trainables import demo
from trainables.data.hub_models import named_revision
from trainables.models import base_model, random_weights
from trainables.models.stored import weight_files
from trainables.values.errors import ConfigError


@pytest.fixture(scope="module")
def bases(workload):
    return {precision: base_model.load(workload, precision, "cpu") for precision in ("16bit", "nf4")}


def test_the_nf4_code_book_is_that_of_normal_quantiles():
    assert np.allclose(nf4_code_book(), bnb.functional.get_4bit_type("nf4", device="cpu").numpy(), atol=2e-6)


def test_nf4_weights_are_those_of_the_paper_with_double_quantization(bases):
    n_compared = 0
    for name, module in bases["nf4"].named_modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        exact = bases["16bit"].get_submodule(name).weight.detach().numpy().T  # Conv1D lies transposed
        ours = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).numpy()
        assert ours.shape == exact.shape
        expected, clear = nf4_with_double_quantization(exact)
        assert clear.mean() > 0.98
        np.testing.assert_allclose(blocks_of(ours.ravel(), BLOCK)[clear], expected[clear], rtol=2e-5, atol=1e-6)
        n_compared += ours.size
    assert n_compared == 2 * (64 * 192 + 64 * 64 + 64 * 256 + 256 * 64)


def test_only_the_blocks_linear_modules_are_quantized(bases):
    quantized = [name for name, m in bases["nf4"].named_modules() if isinstance(m, bnb.nn.Linear4bit)]
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert quantized == [f"transformer.h.{i}.{kind}" for i in range(2) for kind in kinds]
    for name, parameter in bases["16bit"].named_parameters():
        if not any(kind in name and name.endswith("weight") for kind in kinds):
            assert torch.equal(parameter, bases["nf4"].get_parameter(name)), name
    for base in bases.values():
        assert base.lm_head.weight is base.transformer.wte.weight


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_a_base_is_frozen_evaluates_and_has_no_dropout_of_its_own(bases, precision, tiny_folder):
    assert json.loads((tiny_folder / "config.json").read_text())["resid_pdrop"] == 0.1
    base = bases[precision]
    assert not base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())
    ids = torch.arange(40)[None]
    expected = base(input_ids=ids).logits
    assert torch.equal(base.train()(input_ids=ids).logits, expected)
    base.eval()


def test_the_16_bit_base_is_what_transformers_loads(bases, tiny_folder):
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, trust_remote_code=False).eval()
    ids = torch.arange(40)[None]
    torch.testing.assert_close(bases["16bit"](input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_the_compute_dtype_holds_for_both_precisions(workload):
    for precision in ("16bit", "nf4"):
        base = base_model.load(replace(workload, compute_dtype="bfloat16"), precision, "cpu")
        floating = {p.dtype for p in base.parameters() if p.is_floating_point()}
        assert floating == {torch.bfloat16}
        assert base.transformer.h[0].attn.c_attn(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_4_bit_base_can_be_trained_through_after_it_was_evaluated(workload):
    base = base_model.load(replace(workload, compute_dtype="bfloat16"), "nf4", "cpu")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        base.eval()(input_ids=ids)
    embedded = base.transformer.wte(ids).detach().requires_grad_()
    base.train()(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.isfinite().all()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux how much memory a process has")
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_host_holds_a_base_once_while_it_is_loaded(precision, tmp_path, workload, monkeypatch):
    """Weights are mapped from their file; what the process itself allocates stays under one more copy.

    The C library keeps freed memory between blocks still in use, up to twice the base here, as it happens; with each
    large block mapped on its own, only what is held is counted.
    """
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))  # bytes; read when the fresh process starts
    shape = LlamaConfig(  # small modules: bitsandbytes compares each weight of one with all 16 codes at once on a CPU
        hidden_size=512, intermediate_size=1024, num_hidden_layers=32, vocab_size=8000, dtype="bfloat16"
    )
    LlamaForCausalLM._from_config(shape, dtype=torch.bfloat16).save_pretrained(tmp_path)
    n_mib = (tmp_path / "model.safetensors").stat().st_size / 2**20
    bf16 = replace(workload, base_folder=str(tmp_path), compute_dtype="bfloat16")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # where nothing else is freed or kept
        more, n_weights = fresh.submit(allocated_by_loading, bf16, workload, precision).result()
    print(f"{precision}: {n_mib:.0f} MiB of weights, {more:.0f} MiB allocated at the peak")
    assert more < n_mib
    assert n_weights > 1e7


def allocated_by_loading(workload, first, precision):
    """Most MiB that a process has beside those before it loads a base, and the base's number of weights."""
    base_model.load(first, precision, "cpu")  # what libraries allocate at first use is no copy
    gc.collect()
    before, peaks, done = allocated_mib(), [0.0], Event()

    def watch() -> None:
        while not done.wait(0.002):
            peaks.append(allocated_mib())

    watcher = Thread(target=watch)
    watcher.start()
    base = base_model.load(workload, precision, "cpu")
    done.set()
    watcher.join()
    return max(peaks) - before, sum(p.numel() for p in base.parameters())


def allocated_mib() -> float:
    """Memory of this process that no file lies behind."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


def test_the_fingerprint_follows_config_and_weights_and_nothing_else(tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    base = base_model.find(str(copy), tmp_path)
    before = base.fingerprint()
    assert before == base_model.find(str(tiny_folder), tmp_path).fingerprint()
    (copy / "README.md").write_text("about")
    assert base.fingerprint() == before
    for name in ("config.json", "model.safetensors"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert base.fingerprint() != before
        (copy / name).write_bytes(content)
    assert base.fingerprint() == before


def test_a_folder_is_pretrained_and_the_demo_is_the_demo(tiny_folder, tmp_path):
    found = base_model.find(str(tiny_folder), tmp_path)
    assert (found.weights, found.folder) == ("pretrained", tiny_folder.resolve())
    found = base_model.find("demo", tmp_path)
    assert (found.weights, found.folder) == ("demo", demo.FOLDER)


@pytest.fixture
def weightless(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "weightless")
    (folder / "model.safetensors").unlink()
    return folder


def test_random_draws_the_same_weights_twice_and_leaves_the_folder_alone(weightless, tmp_path):
    content = sorted(path.name for path in weightless.iterdir())
    rng = torch.random.get_rng_state()
    first = base_model.find(f"random:{weightless}", tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), rng)
    torch.rand(5)
    again = base_model.find(f"random:{weightless}", tmp_path / "two")
    assert first.weights == "random"
    assert first.fingerprint() == again.fingerprint()
    assert sorted(path.name for path in weightless.iterdir()) == content
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert base_model.find(f"random:{weightless}", tmp_path / "one").folder == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "one").iterdir()] == [first.folder.name]


def test_drawn_weights_come_with_the_folders_config_tokenizer_and_chat_template(weightless, workload, tmp_path):
    (weightless / "chat_template.jinja").write_text("{{ messages }}")
    (weightless / "tokenizer.model").write_bytes(b"pieces")
    drawn = base_model.find(f"random:{weightless}", tmp_path / "cache")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"):
        assert (drawn.folder / name).read_bytes() == (weightless / name).read_bytes()
    shape = AutoConfig.from_pretrained(drawn.folder, trust_remote_code=False)
    assert (shape.n_layer, shape.hidden_size, shape.vocab_size) == (2, 64, 1024)
    base = base_model.load(replace(workload, base_folder=str(drawn.folder)), "16bit", "cpu")
    std = float(base.transformer.wte.weight.std())
    assert 0.19 < std < 0.21, std
    norms = [module for module in base.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms), "not drawn, left as memory was"


def test_drawn_weights_come_with_all_that_a_tokenizer_is_made_of_and_with_no_list_of_shards(weightless, tmp_path):
    kept = ("chat_template.jinja", "tokenizer.model", "qwen.tiktoken", "merges.txt", "special_tokens_map.json")
    for name in kept:
        (weightless / name).write_text("{}")
    (weightless / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "one.safetensors"}}))
    folder = random_weights.drawn(weightless, tmp_path / "cache")
    assert {*kept} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed: it is read")
@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_tokenizer_model_alone_is_refused_with_what_it_needs_before_weights_are_drawn(prefix, weightless, tmp_path):
    (weightless / "tokenizer.json").rename(weightless / "tokenizer.model")
    for path in weightless.glob("vocab.json"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.model alone, which needs `pip install sentencepiece protobuf`"):
        base_model.find(f"{prefix}{weightless}", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_weights_is_refused_with_how_to_measure_cost(weightless, tmp_path):
    with pytest.raises(ConfigError, match=r"no \*\.safetensors; .* BASE_MODEL=random:") as caught:
        base_model.find(str(weightless), tmp_path)
    assert f"random:{weightless}" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_folder_without_a_config_is_refused(prefix, tmp_path):
    with pytest.raises(ConfigError, match=r"BASE_MODEL: no config\.json in .*nowhere"):
        base_model.find(f"{prefix}{tmp_path / 'nowhere'}", tmp_path)


ODD_NAMES = {
    "org/name@": "'' behind the @",
    "org/name@../x": "'../x' behind the @",
    "org/name@a b": "'a b' behind the @",
    "org/name@v1..v2": "'v1..v2' behind the @",
    "org/name@-x": "'-x' behind the @",
    "org/name@v1/": "'v1/' behind the @",
    "org/name@v1@v2": "'v1@v2' behind the @",
    "@main": "neither a hub id",
    "org name": "neither a hub id",
    "org/name/more@v1": "neither a hub id",
    "org/../name": "neither a hub id",
    "https://huggingface.co/org/name": "neither a hub id",
}


@pytest.mark.parametrize("source", ODD_NAMES)
def test_a_hub_id_or_revision_that_no_hub_can_have_is_refused_before_it_is_asked(source):
    with pytest.raises(ConfigError, match=re.escape(ODD_NAMES[source])) as caught:
        base_model.local_folder(source)
    assert repr(source) in str(caught.value)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "feature/x-1", "0123456789abcdef", "v1+cu"])
@pytest.mark.parametrize("repo_id", ["gpt2", "openai-community/gpt2-medium", "Qwen/Qwen2.5-0.5B", "a_b/c.d"])
def test_a_hub_id_is_told_from_its_revision(repo_id, revision):
    assert base_model.local_folder(f"{repo_id}@{revision}") is None
    assert named_revision(f"{repo_id}@{revision}") == (repo_id, revision)
    assert named_revision(repo_id) == (repo_id, None)
