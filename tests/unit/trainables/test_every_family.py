"""A trial and all that follows it, over a tiny model of every family in a folder, on a CPU, at both precisions."""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from tests.support.families import CASES, N_BLOCKS, Case, write
from tests.support.nf4 import BLOCK, blocks_of, nf4_with_double_quantization
from tests.support.stock_trainer import trainer_losses
from trainables.comparison import bias, sensitivity
from trainables.comparison.compare import compare
from trainables.comparison.exported import merged_model
from trainables.data import tokens
from trainables.data.rows import read_rows
from trainables.data.tokenized import tokenize
from trainables.data.tokens import pad
from trainables.evaluation import held_out
from trainables.evaluation.decoding import greedy_texts
from trainables.models import base_model, lora
from trainables.models.inputs import Inputs
from trainables.models.lean import is_conv1d
from trainables.training.eager import EagerEngine
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.workload import Workload
from trainables.worker_cache import WorkerCache

N_STEPS = 50
FIRST_OF_FAMILY = tuple({case.model_type: case for case in reversed(CASES)}.values())
PROMPTS = ([5], [9, 8, 7, 6], list(range(300, 320)), [17] * 11)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A case in a folder, with the demo's rows."""

    case: Case
    workload: Workload
    cache: WorkerCache

    def config(self, **values) -> TrialConfig:
        small = {"rank": 4, "alpha": 8, "batch_size": 2, "max_length_tokens": 48, "max_steps": 3, "dropout": 0.0}
        return TrialConfig(**{"targets": self.case.family.targets, **small, **values})


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def on_disk(request, tmp_path_factory) -> OnDisk:
    root = tmp_path_factory.mktemp("family")
    base = base_model.find(str(write(request.param, root / "base")), root)
    rows = tokenize(read_rows("demo"), base.folder, root, 256)
    found = Inputs(
        base=base,
        fingerprint=base.fingerprint(),
        rows_source="demo",
        tokens=rows,
        row_kind="Alpaca",
        rows_found="",
    )
    workload = found.workload("float32")
    cache = WorkerCache(workload, "cpu")
    cache.rows = {name: rows[:6] for name, rows in cache.rows.items()}  # held-out rows take most of the time
    return OnDisk(request.param, workload, cache)


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_fifty_lean_steps_are_those_of_the_hugging_face_trainer_with_peft(on_disk, precision, tmp_path):
    if precision == "nf4" and on_disk.case not in FIRST_OF_FAMILY:
        pytest.skip("another variant of this family takes these steps at 4 bits")
    config = on_disk.config(precision=precision, alpha=32, learning_rate=2e-3, loop="lean")
    rows = [row for row in tokens.load(on_disk.workload.data_folder)["train"] if len(row.input_ids) <= 48]
    batches = [pad(rows[i : i + 1], max_length_tokens=48, pad_id=0) for i in range(N_STEPS)]
    base = on_disk.cache.base(precision)
    with attached(base, config) as model:
        theirs, _ = trainer_losses(model, batches, learning_rate=2e-3, folder=tmp_path, use_cpu=True)
    with attached(base, config) as model:
        ours = EagerEngine(model, config, compute_dtype="float32", device="cpu").run(batches)
    assert (ours - theirs).abs().max() < 1e-5, (ours, theirs)
    assert theirs[-10:].mean() < theirs[:10].mean()


def test_nf4_weights_of_every_target_are_those_of_the_paper_and_nothing_else_is_quantized(on_disk):
    exact, quantized = on_disk.cache.base("16bit"), on_disk.cache.base("nf4")
    modules, exact_modules = sensitivity.modules_of(quantized), sensitivity.modules_of(exact)
    four_bit = [module for module in quantized.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert four_bit == list(modules.values())
    assert len(four_bit) == N_BLOCKS * len(on_disk.case.family.targets)
    for place in list(modules)[:: max(1, len(modules) // 4)]:
        weight = exact_modules[place].weight.detach()
        weight = weight.T if is_conv1d(exact_modules[place]) else weight
        expected, clear = nf4_with_double_quantization(weight.numpy())
        ours = bnb.functional.dequantize_4bit(modules[place].weight.data, modules[place].weight.quant_state).numpy()
        assert clear.mean() > 0.95
        np.testing.assert_allclose(blocks_of(ours.ravel(), BLOCK)[clear], expected[clear], rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def adapters(on_disk) -> dict[str, dict[str, bytes]]:
    """The adapter of a short trial at each precision, in peft's files."""
    files = {}
    for precision, loop in (("16bit", "lean"), ("nf4", "standard")):
        trial = Trial(on_disk.config(precision=precision, loop=loop), on_disk.cache)
        measured = list(trial.measurements())
        assert measured[-1].step == 3
        assert all(math.isfinite(m.train_loss_nats) and math.isfinite(m.eval_loss_nats) for m in measured)
        files[precision] = trial.adapter_files()
        trial.close()
    return files


def test_a_trial_at_each_precision_ends_in_an_adapter_that_names_its_targets(on_disk, adapters):
    for files in adapters.values():
        settings = json.loads(files["adapter_config.json"])
        assert sorted(settings["target_modules"]) == sorted(on_disk.case.family.targets)
        assert lora.read_files(files).targets == on_disk.case.family.targets
        assert len(lora.read_files(files).matrices) == 2 * N_BLOCKS * len(on_disk.case.family.targets)


def test_a_4_bit_trial_is_compared_with_its_baseline(on_disk, adapters):
    found = compare(on_disk.cache, nf4=adapters["nf4"], baseline=adapters["16bit"])
    assert found.quantized.n_rows == found.quantized.n_decoded_rows == 6
    assert found.quantized.kl_nats.value > 0
    assert 0 <= found.quantized.token_match_rate.value <= 1


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_prompts_are_continued_at_once_through_a_static_cache_as_each_is_alone(on_disk, precision):
    base = on_disk.cache.base(precision)
    with attached(base, on_disk.config(precision=precision), spread=0.05) as model:
        together = greedy_texts(model, PROMPTS, n_new=9, ends=[0, 1])
        assert together == [plain_text(model, prompt, 9, ends=(0, 1)) for prompt in PROMPTS]


@torch.no_grad()
def plain_text(model, prompt: list[int], n_new: int, *, ends: tuple[int, ...]) -> list[int]:
    """Greedy text without cache, padding or masks of ours."""
    text: list[int] = []
    while len(text) < n_new and not set(ends) & set(text):
        text.append(int(model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits[0, -1].argmax()))
    return text


def test_quantizing_all_modules_of_the_16_bit_base_gives_the_4_bit_bases_losses(on_disk):
    base, rows = on_disk.cache.base("16bit"), on_disk.cache.rows["validation"][:4]
    places = list(sensitivity.modules_of(base))
    everything = next(v for v in sensitivity.variants_of(places) if v.scope == "all")
    found = sensitivity.measure(base, everything, rows, sensitivity.read(base, rows))
    losses = {p: held_out.eval_loss(on_disk.cache.base(p), rows) for p in ("16bit", "nf4")}
    assert found.loss_nats == pytest.approx(losses["nf4"] - losses["16bit"], abs=1e-4)
    assert found.kl_nats > 0


@torch.no_grad()
def test_the_bias_probe_reads_transformers_own_distribution_of_the_next_token(on_disk):
    base = on_disk.cache.base("16bit")
    prompts = [list(prompt) for prompt in PROMPTS]
    found = bias.next_token_probabilities(base, held_out.response_states(base, bias.as_rows(prompts)))
    for row, prompt in zip(found, prompts, strict=True):
        logits = base(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(row[: len(logits)], logits.double().softmax(dim=-1), rtol=1e-3, atol=1e-6)
        assert not row[len(logits) :].any(), "beyond the vocabulary"


@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_merged_model_has_the_loss_of_base_and_adapter(on_disk, adapters, precision):
    rows = on_disk.cache.rows["validation"][:8]
    merged = merged_model(on_disk.workload, (precision, ()), adapters[precision])
    base = base_model.load(on_disk.workload, precision, "cpu")
    with_adapter = held_out.eval_loss(lora.from_files(base, adapters[precision]), rows)
    assert held_out.eval_loss(merged.float(), rows) == pytest.approx(with_adapter, abs=5e-3)


@contextmanager
def attached(base, config, *, spread: float = 0.0):
    """The base with an adapter, whose B is drawn with a spread instead of zero."""
    model = lora.attach(base, config, base_name="tiny")
    generator = torch.Generator().manual_seed(1)
    for name, matrix in lora.matrices_of(model).items():
        if "lora_B" in name and spread:
            matrix.data.normal_(0, spread, generator=generator)
    try:
        yield model.train(not spread)
    finally:
        lora.detach(model)
