"""Dense decoders that no family describes: eager, by the standard loop, through transformers' own forward."""

import math
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch.nn import functional as F

from tests.support.families import N_BLOCKS, UNKNOWN, write
from trainables.comparison import bias
from trainables.comparison.compare import compare
from trainables.comparison.sensitivity import modules_of
from trainables.data.rows import read_rows
from trainables.data.tokenized import tokenize
from trainables.evaluation.decoding import greedy_texts
from trainables.evaluation.held_out import eval_loss, response_states, response_tokens
from trainables.models import base_model
from trainables.models.families import family_of, family_of_model, resolve_targets
from trainables.models.inputs import Inputs
from trainables.models.layout import coverage, layout_in
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.worker_cache import WorkerCache

PROMPTS = ([5], [9, 8, 7, 6], list(range(300, 320)))


@pytest.fixture(scope="module", params=UNKNOWN, ids=lambda case: case.name)
def cache(request, tmp_path_factory) -> WorkerCache:
    root = tmp_path_factory.mktemp("unknown")
    assert family_of(request.param.model_type) is None
    base = base_model.find(str(write(request.param, root / "base")), root)
    rows = tokenize(read_rows("demo"), base.folder, root, 256)
    found = Inputs(
        base=base, fingerprint=base.fingerprint(), rows_source="demo", tokens=rows, row_kind="Alpaca", rows_found=""
    )
    cache = WorkerCache(found.workload("float32"), "cpu")
    cache.rows = {name: rows[:4] for name, rows in cache.rows.items()}
    return cache


def test_a_trial_at_each_precision_is_trained_and_compared(cache):
    family = family_of_model(cache.base("16bit"))
    files = {}
    for precision in ("16bit", "nf4"):
        config = TrialConfig(
            precision=precision,
            rank=4,
            alpha=8,
            targets=family.targets,
            batch_size=2,
            max_length_tokens=48,
            max_steps=3,
        )
        trial = Trial(config, cache)
        assert all(math.isfinite(measurement.eval_loss_nats) for measurement in trial.measurements())
        files[precision] = trial.adapter_files()
        trial.close()
    assert compare(cache, nf4=files["nf4"], baseline=files["16bit"]).quantized.kl_nats.value > 0


@torch.no_grad()
def test_held_out_loss_and_bias_probe_are_of_the_models_own_logits(cache):
    base, rows = cache.base("16bit"), cache.rows["validation"]
    nats, n_tokens = 0.0, 0
    for row, targets in zip(rows, response_tokens(base, rows), strict=True):
        logits = base(input_ids=torch.tensor([row.input_ids[-256:]]), use_cache=False).logits[0]
        nats += float(F.cross_entropy(logits[-len(targets) - 1 : -1], torch.tensor(targets), reduction="sum"))
        n_tokens += len(targets)
    assert eval_loss(base, rows) == pytest.approx(nats / n_tokens, rel=1e-5)
    found = bias.next_token_probabilities(base, response_states(base, bias.as_rows(PROMPTS)))
    for row, prompt in zip(found, PROMPTS, strict=True):
        logits = base(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(row[: len(logits)], logits.double().softmax(dim=-1), rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_greedy_text_is_that_of_a_plain_loop(cache):
    base = cache.base("nf4")
    for prompt, text in zip(PROMPTS, greedy_texts(base, PROMPTS, n_new=6, ends=[0]), strict=True):
        expected: list[int] = []
        while len(expected) < 6 and 0 not in expected:
            logits = base(input_ids=torch.tensor([[*prompt, *expected]]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert text == expected


def test_nf4_and_all_linear_take_the_linear_modules_of_the_blocks_and_nothing_else(cache):
    quantized = [m for m in cache.base("nf4").modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert set(quantized) == set(modules_of(cache.base("nf4")).values())
    layout = layout_in(Path(cache.workload.base_folder))
    every = resolve_targets(["all-linear"], layout.family)
    found = coverage(layout, every)
    assert (found.share, found.n_blocks, found.missed) == (1.0, N_BLOCKS, ())
    assert every == family_of_model(cache.base("16bit")).targets
    attention, mlp, qkv = (resolve_targets([group], layout.family) for group in ("attention", "mlp", "qkv"))
    assert {*attention, *mlp} == {*every}
    assert set(qkv) < set(attention)
    assert len(qkv) == len(attention) - 1
