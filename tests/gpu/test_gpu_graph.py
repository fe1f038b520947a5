"""Captured steps on a real GPU against the same steps done eagerly: losses, weights, dropout, memory."""

from dataclasses import replace
from time import perf_counter

import pytest
import torch

from trainables.cost.device import free_memory_mib
from trainables.evaluation.decoding import greedy_texts
from trainables.models import lora
from trainables.models.families.gpt2 import TARGETS
from trainables.models.full_weights import kept_weights
from trainables.training.batches import Batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.graph import GraphEngine
from trainables.training.graph_cache import MIN_STEP_GRAPHS, GraphCache
from trainables.trial import Trial
from trainables.values.checkpoint import Checkpoint
from trainables.values.config import TrialConfig
from trainables.values.results import MIB
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
N_STEPS = 12


@pytest.fixture(scope="module")
def exact_cache(wide) -> WorkerCache:
    return WorkerCache(wide, "cuda")


def config_of(**values) -> TrialConfig:
    small = {"precision": "16bit", "rank": 5, "alpha": 16, "targets": TARGETS, "dropout": 0.0, "learning_rate": 1e-3}
    return TrialConfig(**{**small, "batch_size": 4, "max_length_tokens": 64, "loop": "lean", **values})


def batches_of(config: TrialConfig, n_batches: int = N_STEPS, seed: int = 0):
    """Random tokens in two lengths; a quarter of each row is prompt."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(n_batches):
        ids = torch.randint(1, 1024, (config.batch_size, 64 if i % 3 else 128), generator=generator)
        labels = ids.clone()
        labels[:, : ids.shape[1] // 4] = -100
        batches.append(Batch(ids, labels))
    return batches


def weights_of(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def starting_weights(cache: WorkerCache, config: TrialConfig) -> list[torch.Tensor]:
    model = lora.attach(cache.base(config.precision), config, base_name="wide")
    try:
        return weights_of(model)
    finally:
        lora.detach(model)


def run_eagerly(cache: WorkerCache, config: TrialConfig, batches) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses and final weights."""
    model = lora.attach(cache.base(config.precision), config, base_name="wide")
    try:
        engine = EagerEngine(model, config, compute_dtype=cache.workload.compute_dtype, device="cuda")
        return engine.run(batches).cpu(), weights_of(model)
    finally:
        lora.detach(model)


def run_captured(cache: WorkerCache, config: TrialConfig, batches):
    """Losses, final weights, and the StepGraphs that made them."""
    steps = [packed(batch, config.loop) for batch in batches]
    graphs = cache.graphs(config, [shape for shape, _ in steps])
    engine = GraphEngine(cache.fresh_matrices(config).values(), config, graphs)
    return engine.run(steps).cpu(), [weight.clone() for weight in engine.parameters], graphs


@pytest.mark.parametrize("loop", ["standard", "lean"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_captured_steps_have_the_losses_and_weights_of_eager_ones(exact_cache, precision, loop):
    """Four trials by the same StepGraphs: rank, alpha and learning rate change between replays.

    Weights are compared as a whole, by what training added: AdamW moves a weight whose gradients are near zero by
    their rounding, as far as any other.
    """
    step_graphs = set()
    for values in ({}, {"rank": 16}, {"alpha": 64, "learning_rate": 3e-4}, {"rank": 1, "rank_stabilized": True}):
        config = config_of(precision=precision, loop=loop, **values)
        batches = batches_of(config)
        start = starting_weights(exact_cache, config)
        eager, theirs = run_eagerly(exact_cache, config, batches)
        captured, ours, graphs = run_captured(exact_cache, config, batches)
        step_graphs.add(id(graphs))
        ours, theirs, start = (torch.cat([w.flatten() for w in weights]) for weights in (ours, theirs, start))
        apart = float((ours - theirs).norm() / (theirs - start).norm())
        nats = float((captured - eager).abs().max())
        print(f"{precision} {loop} {values}: {nats:.2e} nats at {float(eager[0]):.2f}; weights {apart:.2e}")
        torch.testing.assert_close(captured, eager, rtol=1e-6, atol=0)
        assert apart < 5e-3
        assert eager.std() > 0
    assert len(step_graphs) == 1


def kernels_of(work) -> list[str]:
    """Names of the kernels that run."""
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return [event.name() for event in profile.profiler.kineto_results.events()]


def test_a_trials_4_bit_steps_dequantize_nothing_where_full_weights_are_kept_and_its_timed_step_does(exact_cache):
    config = config_of(precision="nf4", batch_size=8)  # as many tokens as dequantize by one kernel
    base = exact_cache.base("nf4")
    assert kept_weights(base)
    shape, vector = packed(batches_of(config)[0], config.loop)
    graphs = exact_cache.graphs(config, [shape], [shape])
    GraphEngine(exact_cache.fresh_matrices(config).values(), config, graphs)
    inputs, rate = vector.cuda(), torch.tensor(0.0, device="cuda")
    losses, n_dequantized = [], []
    for is_timed in (False, True):
        names = kernels_of(lambda is_timed=is_timed: graphs.replay(shape, inputs, rate, is_timed=is_timed))
        losses.append(graphs.loss_nats.item())
        n_dequantized.append(sum("dequantize" in name.lower() for name in names))
    n_modules = len(TARGETS) * base.config.n_layer
    assert n_dequantized == [0, 2 * n_modules - 1]  # nothing goes back through the first module
    assert losses[0] == losses[1]


def test_full_weights_are_given_up_for_a_known_trial_without_graphs_that_has_no_room_beside_them(wide):
    cache, config = WorkerCache(wide, "cuda"), config_of(precision="nf4", engine="eager", max_steps=1)
    cost, _ = trained(cache, config)
    assert kept_weights(cache.base("nf4"))
    left = free_memory_mib("cuda")
    for reserved_mib, keeps in ((left / 2, True), (2 * left, False)):
        trial = Trial(config, cache, cost=replace(cost, reserved_memory_mib=reserved_mib))
        trial.close()
        assert bool(kept_weights(cache.base("nf4"))) == keeps


def test_a_16_bit_step_is_timed_by_the_graph_that_trains(exact_cache):
    config = config_of()
    shape, _ = packed(batches_of(config)[0], config.loop)
    graphs = exact_cache.graphs(config, [shape], [shape])
    assert [own for own in graphs._steps if own[0] == shape] == [(shape, False)]


def test_the_padding_of_the_graphs_rank_stays_zero(exact_cache):
    config = config_of()
    _, _, graphs = run_captured(exact_cache, config, batches_of(config))
    assert graphs.key.rank == 16
    for name, weight in graphs._weights.items():
        padding = weight[5:] if "lora_A" in name else weight[:, 5:]
        assert padding.numel()
        assert not padding.any()
        assert weight.any()


def test_each_replay_draws_its_own_dropout_and_a_seed_repeats_them_all(exact_cache):
    config = config_of(dropout=0.4, learning_rate=1e-30)  # B does not move by as much as float32 shows
    batch = batches_of(config)[1]
    shape, vector = packed(batch, "lean")
    graphs = exact_cache.graphs(config, [shape])
    matrices = exact_cache.fresh_matrices(config)
    for name, matrix in matrices.items():
        if "lora_B" in name:
            matrix.fill_(0.02)
    passes = []
    for seed in (3, 3, 4):
        GraphEngine(matrices.values(), replace(config, seed=seed), graphs)
        losses = []
        for _ in range(4):
            graphs.replay(shape, vector.cuda(), torch.tensor(config.learning_rate, device="cuda"))
            losses.append(graphs.loss_nats.item())
        passes.append(losses)
    assert len({*passes[0], *passes[2]}) == 8, passes
    assert passes[0] == passes[1]


def test_a_captured_trial_repeats_exactly_whatever_ran_between(exact_cache):
    config = config_of(dropout=0.2)
    batches = batches_of(config)
    first, ours, _ = run_captured(exact_cache, config, batches)
    run_captured(exact_cache, replace(config, rank=9, learning_rate=1e-2), batches_of(config, seed=1))
    again, same, _ = run_captured(exact_cache, config, batches)
    assert first.tolist() == again.tolist()
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))


def test_a_captured_overflow_skips_one_step_and_halves_the_scale(wide):
    cache = WorkerCache(replace(wide, compute_dtype="float16"), "cuda")
    config = config_of()
    run_captured(cache, replace(config, targets=TARGETS[:1]), batches_of(config, 1))  # the next kind is captured warm
    batch = batches_of(config)[1]
    shape, vector = packed(batch, "lean")
    graphs = cache.graphs(config, [shape])
    GraphEngine(cache.fresh_matrices(config).values(), config, graphs)
    inputs, scales, moved = vector.cuda(), [], []
    rate = torch.tensor(config.learning_rate, device="cuda")
    for scale in (2.0**10, 2.0**60, 2.0**10):
        graphs._scaler._scale.fill_(scale)
        before = [w.clone() for w in graphs._weights.values()]
        graphs.replay(shape, inputs, rate)
        scales.append(graphs.loss_scale)
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, graphs._weights.values(), strict=True)))
    assert (scales, moved) == ([2.0**10, 2.0**59, 2.0**10], [True, False, True])
    assert int(graphs.n_bad_gradients) == 1


def trained(cache: WorkerCache, config: TrialConfig):
    """Cost and measurements of one trial."""
    run = Trial(config, cache)
    try:
        assert run.fallback is None
        return run.cost, list(run.measurements())
    finally:
        run.close()


def test_a_captured_trial_has_the_measurements_of_an_eager_one(exact_cache, small_config):
    """But for time; batches are the same, as both loops are lean."""
    for precision in ("16bit", "nf4"):
        eager = small_config(precision=precision, loop="lean", dropout=0.0, max_steps=16)
        cost, expected = trained(exact_cache, eager)
        captured_cost, measurements = trained(exact_cache, replace(eager, engine="graph"))
        assert captured_cost.peak_memory_mib == pytest.approx(cost.peak_memory_mib, abs=1.0)
        for ours, theirs in zip(measurements, expected, strict=True):
            assert ours.train_loss_nats == pytest.approx(theirs.train_loss_nats, rel=1e-6)
            assert ours.eval_loss_nats == pytest.approx(theirs.eval_loss_nats, rel=1e-6)


def test_a_captured_trials_peak_is_that_of_a_worker_that_has_nothing_else(wide, small_config):
    config = small_config(engine="graph", loop="lean", precision="nf4")
    fresh, _ = trained(WorkerCache(wide, "cuda"), config)
    used = WorkerCache(wide, "cuda")
    for other in (replace(config, precision="16bit"), replace(config, targets=TARGETS), replace(config, rank=40)):
        trained(used, other)
    later, _ = trained(used, config)
    print(f"peak differs by {(later.peak_memory_mib - fresh.peak_memory_mib) * MIB:.0f} bytes")
    assert later.peak_memory_mib == pytest.approx(fresh.peak_memory_mib, abs=1.0)


def test_steps_are_captured_again_after_everything_was_forgotten(wide, small_config):
    config = small_config(engine="graph", loop="lean")
    cache = WorkerCache(wide, "cuda")
    _, expected = trained(cache, config)
    cache.forget()
    _, measurements = trained(cache, config)
    assert [m.eval_loss_nats for m in measurements] == [m.eval_loss_nats for m in expected]


@pytest.mark.parametrize("has_room", [True, False])
def test_more_kinds_of_graphs_stay_while_there_is_room_for_them(wide, has_room):
    cache = WorkerCache(wide, "cuda")
    cache._graph_cache = GraphCache(lambda: has_room)
    kinds = [config_of(rank=65 + n, targets=TARGETS[:1], max_steps=1) for n in range(MIN_STEP_GRAPHS + 2)]
    shapes = [packed(batches_of(kinds[0], 1)[0], "lean")[0]]
    first, *_ = (cache.graphs(kind, shapes) for kind in kinds)
    assert len(cache._graph_cache) == MIN_STEP_GRAPHS + 2 * has_room
    assert (cache.graphs(kinds[0], shapes) is first) == has_room


def test_memory_returns_to_the_baseline_after_captured_trials(exact_cache, small_config):
    config = small_config(engine="graph", loop="lean")
    trained(exact_cache, config)
    torch.cuda.synchronize()
    baseline = torch.cuda.memory_allocated()
    for rank in (4, 8, 2):
        trained(exact_cache, replace(config, rank=rank))
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() - baseline < 2 * MIB


def test_greedy_text_by_captured_steps_is_that_of_a_plain_loop(exact_cache):
    base = exact_cache.base("16bit").eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 1024, (n,), generator=generator).tolist() for n in (3, 17, 9, 30)]
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(20):
                ids.append(int(base(input_ids=torch.tensor([ids], device="cuda")).logits[0, -1].argmax()))
                if ids[-1] == 0:
                    break
            expected.append(ids[len(prompt) :])
    assert greedy_texts(base, prompts, n_new=20, ends=[0]) == expected


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("compute_dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_a_captured_trial_that_goes_on_from_a_checkpoint_has_the_losses_and_weights_of_one_that_never_stopped(
    wide, small_config, precision, compute_dtype, dropout
):
    """To the bit, on a worker that has trained another rank in between, and on a new one."""
    dtyped = replace(wide, compute_dtype=compute_dtype)
    cache = WorkerCache(dtyped, "cuda")
    config = small_config(
        engine="graph", loop="lean", precision=precision, rank=5, dropout=dropout, max_steps=16, learning_rate=3e-3
    )
    cost, _ = trained(cache, config)
    expected, files, checkpoints = with_checkpoints(cache, config, cost)
    trained(cache, replace(config, rank=9, seed=3))
    for worker in (cache, WorkerCache(dtyped, "cuda")):
        start = Checkpoint.from_bytes(checkpoints[4].to_bytes())
        rest, same, _ = with_checkpoints(worker, config, cost, start=start)
        assert rest == expected[2:]
        assert same == files


def with_checkpoints(cache: WorkerCache, config: TrialConfig, cost, start: Checkpoint | None = None):
    """Measurements, the adapter's files, and a checkpoint at each rung; prints what a checkpoint costs."""
    run = Trial(config, cache, cost=cost, checkpoint=start)
    try:
        measurements, checkpoints = [], {}
        for measurement in run.measurements():
            measurements.append(measurement)
            begun = perf_counter()
            checkpoints[measurement.step] = run.checkpoint(measurement.step, seconds=0.0)
            milliseconds = 1000 * (perf_counter() - begun)
        size = checkpoints[measurement.step].engine.weights.nbytes / MIB
        print(f"a checkpoint of an adapter of {size:.2f} MiB takes {milliseconds:.1f} ms")
        return measurements, run.adapter_files(), checkpoints
    finally:
        run.close()


def test_either_engine_goes_on_from_a_checkpoint_of_the_other(exact_cache, small_config):
    """As after a resume on a device that can capture steps, or cannot."""
    graph = small_config(engine="graph", loop="lean", rank=5, dropout=0.0, max_steps=16)
    eager = replace(graph, engine="eager")
    cost, _ = trained(exact_cache, graph)
    expected, _, by_graph = with_checkpoints(exact_cache, graph, cost)
    _, _, by_eager = with_checkpoints(exact_cache, eager, cost)
    for config, checkpoints in ((graph, by_eager), (eager, by_graph)):
        rest, _, _ = with_checkpoints(exact_cache, config, cost, start=checkpoints[8])
        assert rest[0].eval_loss_nats == pytest.approx(expected[-1].eval_loss_nats, rel=1e-5)
