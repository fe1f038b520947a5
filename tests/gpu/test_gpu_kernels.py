"""The Triton kernels on a real GPU against the same operations in plain PyTorch, and captured against eager."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from trainables.cost.device import compute_capability
from trainables.data.tokens import TokenRow
from trainables.evaluation.held_out import eval_batches
from trainables.models import block_ops, chunked_loss, dropout_mask, lora, lora_linear, next_token
from trainables.models.block_ops import Gated, RMSNorm, Rotary
from trainables.models.chunked_loss import ChunkedLoss, aligned_logits, supervised
from trainables.models.compile_ahead import compile_ahead
from trainables.models.dropout_mask import DropoutMasks, Mask, dropped, token_keys
from trainables.models.kernels import can_run_on
from trainables.models.lean import adapted_layers, lean_loss, lean_modules
from trainables.models.lora_linear import FrozenLinear, input_gradients_, low_product
from trainables.models.next_token import divergence, token_nats
from trainables.models.peft_forward import follow_protocol
from trainables.training.batches import Batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.engine import standard_loss
from trainables.training.graph import GraphEngine
from trainables.training.step_graphs import StepGraphs
from trainables.values.config import TrialConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Each with the relative difference that rounding alone makes."""
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (scale * torch.randn(shape, generator=generator)).to("cuda", dtype)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def without_kernels(monkeypatch, module, name: str, work):
    """What `work` gives on the GPU in plain PyTorch."""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, None)
        return work()


def test_the_kernels_are_there():
    assert can_run_on(torch.zeros(1, device="cuda"))
    assert dropout_mask.mask_kernels is not None
    assert block_ops.block_kernels is not None
    assert chunked_loss.loss_kernels is not None
    assert lora_linear.adapter_kernels is not None


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_mask_has_the_same_bits_on_the_gpu_and_on_the_cpu(seed):
    for module, p in ((0, 0.05), (1, 0.5), (16, 0.05), (223, 0.9)):
        masks = []
        for device in ("cpu", "cuda"):
            of_trial = DropoutMasks(seed, device)
            of_trial.n_steps.fill_(77)
            with of_trial.step(3, 70):
                masks.append(of_trial.of(module, p))
        on_cpu, on_gpu = masks
        assert torch.equal(on_gpu.keys.cpu(), on_cpu.keys)
        ones = torch.ones(210, 1001)
        assert torch.equal(dropped(ones.cuda(), on_gpu).cpu(), dropped(ones, on_cpu))
        assert torch.equal(on_gpu.keep(1001).cpu(), on_cpu.keep(1001))


def test_the_key_kernel_takes_rows_and_positions_of_any_shape():
    numbers = [torch.tensor(n, dtype=torch.int32) for n in (5, 9)]
    rows, positions = torch.randint(0, 99, (2, 300), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    expected = token_keys(*numbers, rows, positions)
    assert torch.equal(token_keys(*(t.cuda() for t in (*numbers, rows, positions))).cpu(), expected)


@pytest.mark.parametrize("shape", [(1024, 2048), (1024, 8192), (210, 1001), (5, 48)])
def test_the_dropout_kernel_computes_what_plain_pytorch_computes(monkeypatch, dtype, shape):
    keys = torch.randint(-(2**31), 2**31 - 1, shape[:1], dtype=torch.int32, device="cuda")
    x, mask = drawn(*shape, dtype=dtype), Mask(keys, 7, 0.3)
    expected = without_kernels(monkeypatch, dropout_mask, "mask_kernels", lambda: dropped(x, mask))
    assert torch.equal(dropped(x, mask), expected)


@pytest.mark.parametrize("p", [None, 0.3])
@pytest.mark.parametrize("rank", [1, 16, 20, 64, 100])
@pytest.mark.parametrize("shape", [(1024, 2048), (1024, 8192), (210, 1001), (5, 48)])
def test_the_adapters_kernel_computes_what_plain_pytorch_computes(monkeypatch, dtype, shape, rank, p):
    keys = torch.randint(-(2**31), 2**31 - 1, shape[:1], dtype=torch.int32, device="cuda")
    x, d_x, d_low = (drawn(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape, (shape[0], rank))))
    a, mask = drawn(rank, shape[1], dtype=dtype, scale=rank**-0.5), Mask(keys, 7, p) if p else None

    def work(scaling=0.7):
        sum_x = d_x.clone()
        d_a = input_gradients_(sum_x, d_low, a, x, mask, scaling, torch.float32)
        assert d_a.dtype == torch.float32
        return d_a, sum_x

    found, expected = work(), without_kernels(monkeypatch, lora_linear, "adapter_kernels", work)
    again, by_tensor = work(), work(torch.tensor(0.7, device="cuda"))
    alone = input_gradients_(None, d_low, a, x, mask, 0.7, torch.float32)
    for ours, theirs, same, other in zip(found, expected, again, by_tensor, strict=True):
        assert apart(ours, theirs) < DTYPES[dtype]
        assert torch.equal(ours, same)
        assert torch.equal(ours, other)
    assert torch.equal(alone, found[0])
    if mask:
        low = low_product(x, a, mask)
        assert apart(low, dropped(x, mask).double() @ a.double().T) < DTYPES[dtype]
        assert torch.equal(low, low_product(x, a, mask))


@pytest.mark.parametrize("n_words", [50257, 128256, 1000, 7])
def test_the_losss_kernel_is_near_plain_pytorch(monkeypatch, dtype, n_words):
    states, head = drawn(300, 64, dtype=dtype), drawn(n_words, 64, dtype=dtype, scale=0.3)
    targets = torch.randint(n_words, (300,), generator=torch.Generator().manual_seed(0)).cuda()
    targets[::7] = -100

    def work():
        leaf = states.clone().requires_grad_()
        loss = ChunkedLoss.apply(leaf, head, targets)
        return loss, torch.autograd.grad(loss, leaf)[0]

    found, expected = work(), without_kernels(monkeypatch, chunked_loss, "loss_kernels", work)
    assert abs(float(found[0] / expected[0]) - 1) < 1e-5
    assert apart(found[1], expected[1]) < DTYPES[dtype]


@pytest.mark.parametrize("n_words", [50257, 128256, 1000, 7])
def test_a_tokens_loss_and_the_divergence_of_two_models_are_near_plain_pytorch(monkeypatch, dtype, n_words):
    head = drawn(n_words, 64, dtype=dtype)
    ours, reference = (aligned_logits(drawn(90, 64, dtype=dtype, seed=n), head) for n in (1, 2))
    reference[:30] = ours[:30]
    reference[:10, 2:5] = ours[:10, 2:5] = 99.0  # of equal logits the first is the most likely
    reference[5:10, 1] = 99.0
    targets = torch.randint(n_words, (90,), generator=torch.Generator().manual_seed(0)).cuda()

    def work():
        return token_nats(ours, targets), *divergence(ours, reference, n_words)

    found, expected = work(), without_kernels(monkeypatch, next_token, "loss_kernels", work)
    exact = -ours.double().log_softmax(dim=-1).gather(1, targets[:, None]).flatten()
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert float(found[1].min()) >= 0
    assert float(found[1][10:30].max()) < 1e-5, "of the same logits"
    assert torch.equal(found[2], expected[2])
    assert found[2][:5].all()
    assert not found[2][5:10].any()


def values_and_gradients(operation, inputs, seed: int = 0) -> list[torch.Tensor]:
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = operation(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [drawn(*t.shape, dtype=t.dtype, seed=seed + i) for i, t in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


def assert_near_plain(monkeypatch, operation, inputs, tolerance: float) -> None:
    def work():
        return values_and_gradients(operation, inputs)

    for found, expected in zip(work(), without_kernels(monkeypatch, block_ops, "block_kernels", work), strict=True):
        assert found.dtype == expected.dtype
        assert apart(found, expected) < tolerance


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(4, 256, 2048), (2, 33, 640), (2, 17, 8, 128), (3, 5000)])
def test_the_norms_kernel_is_near_plain_pytorch(monkeypatch, dtype, shape, offset):
    weight = drawn(shape[-1], dtype=dtype)
    x = drawn(*shape, dtype=dtype)
    for way in (x, x.transpose(1, 2)) if x.dim() == 4 else (x,):
        assert_near_plain(monkeypatch, lambda t: RMSNorm.apply(t, weight, 1e-6, offset), [way], DTYPES[dtype])


@pytest.mark.parametrize("n_angles", [1, 3])
@pytest.mark.parametrize(("heads", "width"), [((32, 8), 64), ((16, 8), 128), ((4, 1), 256), ((3, 1), 80)])
def test_the_rotary_kernel_is_near_plain_pytorch(monkeypatch, dtype, heads, width, n_angles):
    q, k = (drawn(3, 50, n, width, dtype=dtype).transpose(1, 2) for n in heads)
    cos, sin = (drawn(n_angles, 50, width, dtype=dtype, seed=i) for i in (1, 2))
    assert_near_plain(monkeypatch, lambda q, k: Rotary.apply(q, k, cos, sin), [q, k], DTYPES[dtype])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(4, 256, 8192), (3, 7, 130)])
def test_the_gates_kernel_is_near_plain_pytorch(monkeypatch, dtype, shape, activation):
    inputs = [drawn(*shape, dtype=dtype, seed=i, scale=3.0) for i in (1, 2)]
    assert_near_plain(monkeypatch, lambda gate, up: Gated.apply(gate, up, activation), inputs, DTYPES[dtype])


# --- whole models


@pytest.fixture(params=["llama", "qwen3", "gemma3"])
def base(request, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "llama":
            model = LlamaForCausalLM(LlamaConfig(**SMALL))
        elif request.param == "qwen3":
            model = Qwen3(Qwen3Config(**SMALL))
        else:
            model = Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, sliding_window=64, query_pre_attn_scalar=64))
    model.config._attn_implementation = "sdpa"
    return model.to("cuda", dtype).requires_grad_(False).eval()


def config_of(**values) -> TrialConfig:
    return TrialConfig(
        **{"precision": "16bit", "rank": 16, "alpha": 32, "targets": TARGETS, "dropout": 0.1, "loop": "lean", **values}
    )


def batch_of(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 1000, (4, 128), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :20] = -100
    return ids, labels


def test_the_lean_loop_has_the_loss_and_gradients_of_pefts_forward_under_the_same_masks(base, dtype):
    """Gradients as a whole: in 16 bits single ones are rounding."""
    model = lora.attach(base, config_of(), base_name="small")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(drawn(*weight.shape, dtype=torch.float32, scale=0.05))
    masks = DropoutMasks(3, "cuda")
    follow_protocol(model.train(), masks)
    ids, labels = batch_of()
    of_loop = {
        "standard": lambda: standard_loss(model, ids.cuda(), labels.cuda()),
        "lean": lambda: lean_loss(model, ids.cuda(), *(t.cuda() for t in supervised(labels))),
    }
    weights = [p for p in model.parameters() if p.requires_grad]
    results = []
    for loss_of in of_loop.values():
        masks.restart(3)
        with masks.step(*ids.shape):
            loss = loss_of()
            gradients = torch.autograd.grad(loss, weights)
        results.append((loss, torch.cat([gradient.flatten() for gradient in gradients])))
    (stock, theirs), (lean, ours) = results
    loss_apart, gradients_apart = abs(float(lean / stock) - 1), apart(ours, theirs)
    print(f"{dtype}: loss {float(lean):.5f}, apart {loss_apart:.1e}; gradients apart {gradients_apart:.1e}")
    assert loss_apart < {torch.float32: 1e-5}.get(dtype, 1e-2)
    assert gradients_apart < {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}[dtype]


def test_captured_steps_with_dropout_have_the_losses_of_eager_ones(base, dtype):
    """Each replay draws the masks of its own step."""
    config, name = config_of(learning_rate=1e-3), str(dtype).removeprefix("torch.")
    batches = [batch_of(seed % 2) for seed in range(6)]
    model = lora.attach(base, config, base_name="small")
    try:
        engine = EagerEngine(model, config, compute_dtype=name, device="cuda")
        eager = engine.run(batches).cpu()
        n_steps = engine.state().n_steps
    finally:
        lora.detach(model)
    row = TokenRow(input_ids=tuple(range(1, 40)), n_prompt_tokens=3)
    graphs = StepGraphs(
        base,
        config,
        eval_batches=eval_batches(base, [row]),
        compute_dtype=name,
        pool=torch.cuda.graph_pool_handle(),
        stream=torch.cuda.Stream(),
    )
    steps = [packed(Batch(*batch), "lean") for batch in batches]
    graphs.capture([shape for shape, _ in steps])
    for _ in range(2):  # a second trial by the same graphs repeats the first
        captured = GraphEngine(lora.fresh_matrices(base, config).values(), config, graphs)
        losses = captured.run(steps).cpu()
        torch.testing.assert_close(losses, eager, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)
        assert captured.state().n_steps == n_steps == len(batches)


def test_lean_modules_exchange_every_norm_and_gate_and_put_them_back(base):
    inside = 0
    with lean_modules(base):
        inside = sum("forward" in vars(module) for module in base.modules())
    norms_and_gates = [m for m in base.modules() if type(m).__name__.endswith(("RMSNorm", "MLP"))]
    assert inside == len(norms_and_gates) > 6
    assert not adapted_layers(base)
    assert not any("forward" in vars(module) for module in base.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64, 1), (300, 64), (1024, 4096), (33, 192)], ids=str)
def test_a_4_bit_weight_is_dequantized_bit_by_bit_as_bitsandbytes_does_it(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator("cuda").manual_seed(0), device="cuda").to(dtype)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert lora_linear.nf4_kernels.serves(packed, state)
    found = lora_linear.nf4_kernels.dequantized(packed, state)
    assert found.shape == shape
    assert torch.equal(found, dequantize_4bit(packed, state))


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((3, 30), {}),
        ((64, 64), {"quant_type": "fp4"}),
        ((64, 64), {"compress_statistics": False}),
        ((64, 64), {"blocksize": 128}),
    ],
    ids=["half a block", "fp4", "plain scales", "larger blocks"],
)
def test_a_weight_that_is_quantized_otherwise_is_left_to_bitsandbytes(shape, how):
    weight = torch.ones(shape, device="cuda")
    packed, state = quantize_4bit(weight, **{"quant_type": "nf4", "compress_statistics": True} | how)
    assert not lora_linear.nf4_kernels.serves(packed, state)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_frozen_4_bit_module_of_the_lean_loop_computes_what_bitsandbytes_does(has_bias):
    module = Linear4bit(128, 192, bias=has_bias, compute_dtype=torch.bfloat16, quant_type="nf4").cuda()
    module.requires_grad_(False)
    assert lora_linear.has_kernel(module)
    x = torch.randn(2, 300, 128, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn(2, 300, 192, device="cuda", dtype=torch.bfloat16)
    results = []
    for forward in (module.forward, lambda x: FrozenLinear.apply(x, module)):
        given = x.clone().requires_grad_()
        y = forward(given)
        y.backward(upstream)
        results.append((y.detach(), given.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


def test_a_4_bit_module_that_reads_few_tokens_is_left_to_bitsandbytes():
    modules = [Linear4bit(128, 64, compute_dtype=torch.bfloat16, quant_type="nf4"), torch.nn.Linear(64, 128)]
    model = torch.nn.Sequential(*modules).cuda().requires_grad_(False).bfloat16()
    assert [lora_linear.has_kernel(module) for module in model] == [True, False]
    for n_tokens, is_ours in ((lora_linear.LEAST_TOKENS, True), (lora_linear.LEAST_TOKENS - 1, False)):
        x = torch.randn(n_tokens, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        y = lora_linear.frozen_linear(model[0], x)
        assert (type(y.grad_fn).__name__ == "FrozenLinearBackward") == is_ours


@pytest.mark.parametrize("rank", [1, 16, 20, 64])
@pytest.mark.parametrize("p", [None, 0.3])
def test_what_is_compiled_ahead_is_what_adapters_need(rank, p):
    """Of each kernel one is compiled for all that a trial may ask for: none is left to the first use."""
    x = drawn(100, 64, dtype=torch.bfloat16)
    a, d_low = drawn(rank, 64, dtype=torch.bfloat16), drawn(100, rank, dtype=torch.bfloat16)
    keys = torch.zeros(100, dtype=torch.int32, device="cuda")
    mask = Mask(keys, 300, p) if p else None
    compile_ahead(torch.bfloat16).wait()

    def n_compiled() -> int:
        kernels = (lora_linear.adapter_kernels._low_product, lora_linear.adapter_kernels._input_gradients)
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)

    before = n_compiled()
    if mask:
        low_product(x, a, mask)
    for d_x in (None, x.clone()):
        input_gradients_(d_x, d_low, a, x, mask, 0.7, torch.float32)
    assert n_compiled() == before > 0


USES = """
import torch
from bitsandbytes.functional import quantize_4bit
from trainables.models import adapter_kernels, chunked_loss, loss_kernels, nf4_kernels
from trainables.models.dropout_mask import DropoutMasks
from trainables.worker_cache import prepare

prepare("cuda").wait()
states, head = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16) for n in (4, 50257))
targets = torch.arange(4, device="cuda")
chunked_loss.ChunkedLoss.apply(states.requires_grad_(), head, targets).backward()
logits = chunked_loss.aligned_logits(states.detach(), head)
loss_kernels.token_nats(logits, targets)
loss_kernels.divergence(logits, logits)
nf4_kernels.dequantized(*quantize_4bit(head[:64], quant_type="nf4", compress_statistics=True))
parts = torch.zeros(2, 64, 64, device="cuda")
for dtype, scaling in ((torch.bfloat16, 1.0), (torch.float32, 0.5), (torch.float32, parts[0, 0, 0].clone())):
    adapter_kernels._sum(parts, dtype, scaling)
with DropoutMasks(3, "cuda").step(4, 16):
    pass
torch.cuda.synchronize()
"""


def test_what_a_process_compiles_ahead_is_not_compiled_again(tmp_path):
    """By a process with the GPU, which finds it in Triton's cache: its threads, and the steps over the default base."""

    def kept_by(*command: str) -> set[Path]:
        environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, *command], env=environment, check=True)
        return set(tmp_path.rglob("*.cubin"))

    kept = kept_by("-m", "trainables.models.compile_ahead", str(compute_capability()))
    used = {"_low_product", "_input_gradients", "_sum_parts", "_cross_entropy", "_token_nats", "_divergence"}
    assert {path.stem for path in kept} == used | {"_attend", "_dequantized", "_token_keys"}
    assert kept_by("-c", USES) == kept
