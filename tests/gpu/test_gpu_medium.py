"""GPT-2 Medium's shape with random weights on a real GPU: parity with the Trainer, memory, float16 as on a T4."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

import search_spaces
from tests.support.stock_trainer import trainer_losses
from trainables.cost import memory, predicted_time
from trainables.data.tokens import IGNORE
from trainables.models import base_model, lora
from trainables.models.families import gpt2
from trainables.models.families.gpt2 import HUB_SHAPES, TARGETS
from trainables.training.eager import EagerEngine
from trainables.training.step_cost import owners_of
from trainables.trial import Trial
from trainables.values.config import TrialConfig
from trainables.values.errors import TrialFailed
from trainables.values.workload import Workload
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
T4_GIB = 15


@pytest.fixture(scope="module")
def medium(workload, tmp_path_factory) -> Workload:
    folder = tmp_path_factory.mktemp("medium")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(n_layer=24, n_embd=1024, n_head=16)).save_pretrained(folder)
    return replace(workload, base_folder=str(folder), compute_dtype="bfloat16")


def config_of(**values) -> TrialConfig:
    return TrialConfig(**{"precision": "16bit", "rank": 8, "alpha": 16, **values})


def drawn_batches(n_batches: int, shape: tuple[int, int], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random tokens; a quarter of each row is prompt, and half of the rows end in padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        ids = torch.randint(50257, shape, generator=generator)
        labels = ids.clone()
        labels[:, : shape[1] // 4] = IGNORE
        labels[::2, -shape[1] // 8 :] = IGNORE
        batches.append((ids, labels))
    return batches


def our_losses(workload: Workload, config: TrialConfig, batches) -> torch.Tensor:
    base = base_model.load(workload, config.precision, "cuda")
    model = lora.attach(base, config, base_name="medium")
    engine = EagerEngine(model, config, compute_dtype=workload.compute_dtype, device="cuda")
    return torch.stack([engine.step(*batch) for batch in batches]).cpu()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_both_loops_take_the_steps_of_the_hugging_face_trainer(
    medium, precision, dtype, tolerance, tmp_path, as_a_new_process
):
    workload = replace(medium, compute_dtype=dtype)
    config = config_of(precision=precision, dropout=0.0, targets=TARGETS)
    batches = drawn_batches(50, (4, 96))
    stock = lora.attach(base_model.load(workload, precision, "cuda"), config, base_name="medium")
    theirs, _ = trainer_losses(stock, batches, learning_rate=config.learning_rate, folder=tmp_path, use_cpu=False)
    del stock
    for loop in ("standard", "lean"):
        as_a_new_process()
        ours = our_losses(workload, replace(config, loop=loop), batches)
        difference = float((ours - theirs).abs().max())
        print(f"{precision} {dtype} {loop}: largest difference of a step's loss {difference:.2e} nats")
        assert difference < tolerance, (ours, theirs)
    assert theirs.std() > 0


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_parts_and_what_was_allocated_before_add_up_to_the_allocators_peak(medium, precision, loop):
    config = config_of(precision=precision, loop=loop)
    of_other_tests = memory.allocated_mib("cuda")
    model = lora.attach(base_model.load(medium, precision, "cuda"), config, base_name="medium")
    engine = EagerEngine(model, config, compute_dtype="bfloat16", device="cuda")
    ids = torch.randint(50257, (4, 256))
    engine.step(ids, ids)
    peak = memory.peak_of(lambda: engine.step(ids, ids), "cuda", lambda: owners_of(model, engine))
    parts = peak.breakdown
    resident = parts.base_weights_mib + parts.quantization_constants_mib + parts.adapter_mib + parts.optimizer_mib
    unseen = memory.allocated_mib("cuda") - resident  # workspaces of libraries, rounding
    print(f"{precision} {loop}: {parts}, unseen {unseen:.1f}")
    assert peak.seen_mib + unseen == pytest.approx(peak.allocated_mib, rel=0.01)
    assert parts.activations_mib > parts.rest_mib - of_other_tests > 0
    torch.cuda.empty_cache()  # what is free decides where a block is split, and so what is rounded up
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        engine.step(ids, ids)
    assert torch.cuda.max_memory_allocated() / memory.MIB == peak.allocated_mib, "watching storages takes no memory"


@contextmanager
def limited(gib: float):
    """Let this process allocate so much of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_trial_after_an_oom_has_the_figures_of_a_fresh_worker(medium):
    config = config_of(max_steps=8)
    fresh = Trial(config, WorkerCache(medium, "cuda"))
    expected = [fresh.cost, *fresh.measurements()]
    fresh.close()
    del fresh
    cache = WorkerCache(medium, "cuda")
    with limited(4), pytest.raises(TrialFailed, match=r"ran out of memory at \d+ MiB") as caught:
        Trial(replace(config, batch_size=16, max_length_tokens=1024), cache)
    assert caught.value.state == "oom"
    del caught
    after = Trial(config, cache)
    found = [after.cost, *after.measurements()]
    after.close()
    assert found[0].peak_memory_mib == pytest.approx(expected[0].peak_memory_mib, rel=0.02)
    assert [m.eval_loss_nats for m in found[1:]] == [m.eval_loss_nats for m in expected[1:]]


def test_memory_that_stays_after_a_trial_is_an_error_that_names_its_size(medium):
    trial = Trial(config_of(max_steps=1), WorkerCache(medium, "cuda"))
    list(trial.measurements())
    kept = torch.empty(3 * memory.MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match=r"3\.\d MiB stay on the device"):
        trial.close()
    del kept


@pytest.mark.parametrize("shape", [(4, 512), (16, 1024)])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_float16_as_on_a_t4_has_the_losses_of_float32(medium, precision, shape, as_a_new_process):
    """15 GiB, and the attention kernels that a T4 has: memory-efficient and plain, no flash attention."""
    config = config_of(precision=precision, loop="lean", dropout=0.0, batch_size=shape[0], max_length_tokens=shape[1])
    batches = drawn_batches(10, shape)
    exact = our_losses(replace(medium, compute_dtype="float32"), config, batches)
    as_a_new_process()
    torch.cuda.reset_peak_memory_stats()
    with limited(T4_GIB), sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        half = our_losses(replace(medium, compute_dtype="float16"), config, batches)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"{precision} {shape}: peak {peak:.2f} GiB, largest difference {float((half / exact - 1).abs().max()):.2e}")
    assert torch.isfinite(half).all()
    assert half.tolist() == pytest.approx(exact.tolist(), rel=0.02)


def test_every_corner_of_the_default_space_runs_in_15_gib_and_takes_about_the_predicted_time(medium, as_a_new_process):
    """On one worker, as in a sweep: both bases and the step graphs of earlier trials stay as long as there is room."""
    as_a_new_process()
    workload, space = replace(medium, compute_dtype="float16"), search_spaces.load("pareto").for_family(gpt2.FAMILY)
    speed, shape = predicted_time.measure("cuda", "float16"), HUB_SHAPES["gpt2-medium"]
    names = {"precision": None, "rank": (1, 64), "targets": None, "dropout": None}
    choices = [space.parameters[name].choices if only is None else only for name, only in names.items()]
    off = []
    with limited(T4_GIB):
        cache = WorkerCache(workload, "cuda")
        for values in product(*choices):
            params = {"alpha_ratio": 1, "learning_rate": 1e-4} | dict(zip(names, values, strict=True))
            config = space.config(params, max_steps=8, engine="graph", loop="lean")
            trial = Trial(config, cache)  # raises TrialFailed where memory runs out
            list(trial.measurements())
            predicted = predicted_time.step_seconds(shape, config, "float16", speed)
            off.append(predicted / trial.cost.seconds_per_step)
            trial.close()
    peak = torch.cuda.max_memory_reserved() / 2**30
    print(f"{len(off)} trials, {peak:.2f} GiB reserved at most; {speed}; predicted / measured {min(off)} to {max(off)}")
    assert peak <= T4_GIB
    assert all(1 / 3 < ratio < 3 for ratio in off), off
