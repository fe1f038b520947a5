"""Predicted peak memory of a training step, from shapes alone: no GPU, no weights, no PyTorch.

What is resident (weights, constants, adapter, AdamW's moments) is counted exactly. What the forward
pass keeps for the backward pass is counted tensor by tensor, as transformers, peft and SDPA keep it
on a GPU. The rest are a few constants, fitted by hand to shapes of tests/bench/memory_shapes.py on one H200; the error
of predictions is measured on other shapes (`make bench-memory`).
"""

from dataclasses import fields

from trainables.cost.shape import Shape
from trainables.values.config import ComputeDtype, TrialConfig
from trainables.values.results import MemoryBreakdown

MIB = 2**20
"""Bytes."""
WORKSPACES_MIB = 65.0
"""Workspaces that CUDA's libraries keep from the first matrix product on (one H200)."""
UNSPLIT_MIB_PER_QUANTIZED_MODULE = 0.126
"""Remainders of the allocator's blocks, too small for anything else (one H200)."""
UNEVEN_MIB = 16.0
"""The same where the activations of a transformer block do not fill whole pages of 2 MiB (one H200)."""
LOSS_CHUNK_BYTES_PER_LOGIT = 8.4
"""Temporary bytes for each logit of one chunk of the lean loss (one H200)."""
LOSS_CHUNK_TOKENS = 256
"""Supervised tokens whose logits the lean loss makes at once, see trainables.models.chunked_loss."""
MAX_ERROR_SHARE, MAX_ERROR_MIB = 0.03, 32.0
"""A prediction may be off by the larger of the two; a config is refused only if it does not fit even then."""
BLOCK_SIZE = 64
"""Weights that share one scale in NF4."""
SCALES_PER_SCALE = 256
"""Double quantization: so many 8-bit scales share one 32-bit scale (Dettmers et al. 2023, section 3)."""


def predicted_breakdown(shape: Shape, config: TrialConfig, dtype: ComputeDtype) -> MemoryBreakdown:
    """Predicted parts of the memory at the peak of a full step; their sum is the predicted peak."""
    width = 4 if dtype == "float32" else 2
    adapter = shape.n_layer * config.rank * sum(sum(shape.modules[t]) for t in config.targets) * 4
    return MemoryBreakdown(
        base_weights_mib=_base_bytes(shape, config, width) / MIB,
        quantization_constants_mib=_constants_bytes(shape, config) / MIB,
        adapter_mib=adapter / MIB,
        gradients_mib=0.0,  # the peak comes before the first of them
        optimizer_mib=2 * adapter / MIB,
        activations_mib=_kept_bytes(shape, config, width) / MIB,
        rest_mib=_rest_mib(shape, config, width),
    )


def predicted_peak_mib(shape: Shape, config: TrialConfig, dtype: ComputeDtype) -> float:
    """Predicted `peak_memory_mib` of a config on a GPU."""
    parts = predicted_breakdown(shape, config, dtype)
    return sum(getattr(parts, field.name) for field in fields(parts))


def _base_bytes(shape: Shape, config: TrialConfig, width: int) -> float:
    """Of the frozen base; `width` is bytes an element in the compute dtype, here and below."""
    others = shape.n_embedding_weights + shape.n_small_weights
    return shape.n_linear_weights * (0.5 if config.precision == "nf4" else width) + others * width


def _constants_bytes(shape: Shape, config: TrialConfig) -> float:
    """Of the scales and code books of NF4 weights."""
    if config.precision == "16bit":
        return 0.0
    scales = shape.n_linear_weights / BLOCK_SIZE
    a_module = (16 + 256 + 1) * 4  # two code books and the mean of the scales
    return scales + scales / SCALES_PER_SCALE * 4 + shape.n_layer * len(shape.modules) * a_module


def _kept_bytes(shape: Shape, config: TrialConfig, width: int) -> float:
    """What the forward pass keeps for the backward pass: bytes a token of each tensor, in a block and after them."""
    d, n_tokens = shape.hidden_size, config.batch_size * config.max_length_tokens
    before = {  # kept on the way to each module
        "attn.c_attn": d * width + 8,  # norm's input and moments
        "attn.c_proj": 3 * d * width + d * width + 4 * shape.n_head,  # q k v, output and log-sums of attention
        "mlp.c_fc": d * width + 8,
        "mlp.c_proj": 4 * d * width * (4 if config.loop == "standard" else 1),  # tensors of gelu
    }
    modules = [*before]
    first = sum(before[t] for t in modules[: modules.index(config.targets[0]) + 1])  # needs no gradient
    block = sum(before.values()) + sum(_kept_by_adapter(shape, t, config, width) for t in config.targets)
    top = d * width + (shape.vocab_size * 4 if config.loop == "standard" else 4 * d)
    return n_tokens * (shape.n_layer * block - first + top)


def _kept_by_adapter(shape: Shape, target: str, config: TrialConfig, width: int) -> float:
    """Bytes a token: the module's input (in float32 in peft's own layer), the dropout's mask, A's output."""
    n_inputs = shape.modules[target][0]
    if config.loop == "standard":
        width = 4
    elif target == "attn.c_proj":
        width = 0  # its input is attention's output, which is counted already
    return n_inputs * (width + (1 if config.dropout else 0)) + 4 * config.rank


def _rest_mib(shape: Shape, config: TrialConfig, width: int) -> float:
    """Temporary results at the peak, workspaces and rounding."""
    fixed = WORKSPACES_MIB
    if config.precision == "nf4":
        fixed += UNSPLIT_MIB_PER_QUANTIZED_MODULE * shape.n_layer * len(shape.modules)
    n_tokens = config.batch_size * config.max_length_tokens
    if n_tokens * shape.hidden_size * width % (2 * MIB):
        fixed += UNEVEN_MIB
    if config.loop == "standard":
        return fixed + n_tokens * shape.vocab_size * 8 / MIB  # the float32 logits' softmax and gradient
    loss = min(n_tokens, LOSS_CHUNK_TOKENS) * shape.vocab_size * LOSS_CHUNK_BYTES_PER_LOGIT
    backward = n_tokens * max(shape.modules[t][0] for t in config.targets) * (10 if config.dropout else 6)
    return fixed + max(loss, backward) / MIB  # of the head, or of the last block's adapter
