"""What quantizing a part of the base costs, without training: a module, a block, a kind of module, or all but it.

No adapter takes part. The 16-bit base stays on the device; while a variant is read, its weights are replaced by what
NF4 makes of them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from numpy.typing import NDArray

from trainables.comparison.similarity import row_cosines
from trainables.cost.device import environment, native_dtype
from trainables.cost.memory import oom_as_failure
from trainables.data import tokens as data
from trainables.evaluation.held_out import divergence, response_states, response_tokens, token_losses
from trainables.models import base_model
from trainables.models.families import family_of_model
from trainables.models.inputs import Inputs
from trainables.models.lean import is_conv1d
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trainables.data.tokens import TokenRow

Place = tuple[int, str]
"""A linear module: number of its block from 0, and its kind, one of its family's targets."""
Scope = Literal["none", "module", "block", "kind", "all", "all_but_block", "all_but_kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A choice of modules to quantize.

    Attributes:
        scope: what is chosen: "none", one module, one block, one kind of module, "all", or all but a block or kind.
        block: the block that the scope speaks of, if any.
        kind: the kind of module that the scope speaks of, if any.
        quantized: the chosen modules.
    """

    scope: Scope
    block: int | None = None
    kind: str | None = None
    quantized: frozenset[Place]

    @property
    def label(self) -> str:
        """For people, e.g. "all but block 3"."""
        part = {
            "module": f"{self.kind} of block {self.block}",
            "block": f"block {self.block}",
            "kind": str(self.kind),
            "all_but_block": f"all but block {self.block}",
            "all_but_kind": f"all but {self.kind}",
        }
        return part.get(self.scope, self.scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What a variant costs against the unquantized base, on the same rows.

    Attributes:
        variant: what is quantized.
        n_parameters: number of its weights.
        loss_nats: token-weighted mean loss minus that of the unquantized base.
        kl_nats: KL(unquantized || variant) of the next-token distribution, mean over response tokens.
        cosine: of the response states after the final norm, pooled over each row; mean over rows.
    """

    variant: Variant
    n_parameters: int
    loss_nats: float
    kl_nats: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSensitivity:
    """What every variant of one base costs.

    Attributes:
        n_rows, n_response_tokens: that were read.
        unquantized_loss_nats: of the 16-bit base on them; the variants' losses are differences to it.
        variants_seconds: wall time of all variants together, without loading.
    """

    workload: Workload
    environment: Mapping[str, str]
    n_rows: int
    n_response_tokens: int
    unquantized_loss_nats: float
    variants_seconds: float
    variants: tuple[Sensitivity, ...]

    @property
    def caption(self) -> str:
        """Under what the figures were taken; says so where the weights are not pretrained ones."""
        measured = f"{self.environment['device']}, {self.workload.compute_dtype}; {self.n_rows} rows"
        return f"{self.workload.base_caption}; {measured}"

    def of(self, scope: Scope, block: int | None = None, kind: str | None = None) -> Sensitivity:
        """The variant of that scope about that block and kind."""
        wanted = (scope, block, kind)
        return next(s for s in self.variants if (s.variant.scope, s.variant.block, s.variant.kind) == wanted)

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks."""
        return [s.variant.block for s in self.variants if s.variant.scope == "block" and s.variant.block is not None]

    @property
    def kinds(self) -> list[str]:
        """Module kinds that the base has."""
        return [str(s.variant.kind) for s in self.variants if s.variant.scope == "kind"]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a variant."""
        rows = []
        for s in self.variants:
            row = {name: getattr(s.variant, name) for name in ("scope", "block", "kind", "label")}
            rows.append(row | {name: getattr(s, name) for name in ("n_parameters", "loss_nats", "kl_nats", "cosine")})
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """States and losses of a model on some rows.

    Attributes:
        states: (n_response_tokens, width), see trainables.evaluation.held_out.response_states.
        losses: nats of each response token.
        pooled: (n_rows, width), mean state over each row's response tokens.
    """

    states: torch.Tensor
    losses: NDArray[np.float64]
    pooled: NDArray[np.float32]


def modules_of(base: "PreTrainedModel") -> "dict[Place, nn.Module]":
    """The linear modules of the blocks, in the order of blocks and of the family's targets.

    Raises:
        ConfigError: the base has no list of blocks with linear modules.
    """
    family = family_of_model(base)
    modules: dict[Place, nn.Module] = {}
    for b, block in enumerate(family.blocks_of(base)):
        modules |= {(b, kind): module for kind, module in family.modules_in(block).items()}
    return modules


def variants_of(places: Sequence[Place]) -> list[Variant]:
    """All variants: nothing, each module, block and kind, everything, everything but each block and each kind.

    L blocks of M modules give (M + 2) L + 2 M + 2 variants.
    """
    every = frozenset(places)
    blocks: dict[int, frozenset[Place]] = {}
    kinds: dict[str, frozenset[Place]] = {}
    for block, kind in places:
        blocks[block] = blocks.get(block, frozenset()) | {(block, kind)}
        kinds[kind] = kinds.get(kind, frozenset()) | {(block, kind)}
    variants = [Variant(scope="none", quantized=frozenset())]
    for b, k in places:
        variants.append(Variant(scope="module", block=b, kind=k, quantized=frozenset({(b, k)})))
    for b, inside in blocks.items():
        variants.append(Variant(scope="block", block=b, quantized=inside))
    for k, inside in kinds.items():
        variants.append(Variant(scope="kind", kind=k, quantized=inside))
    variants.append(Variant(scope="all", quantized=every))
    for b, inside in blocks.items():
        variants.append(Variant(scope="all_but_block", block=b, quantized=every - inside))
    for k, inside in kinds.items():
        variants.append(Variant(scope="all_but_kind", kind=k, quantized=every - inside))
    return variants


def round_trip(module: "nn.Module") -> torch.Tensor:
    """The module's weight after NF4 and back, in its own shape and dtype.

    As base_model.load quantizes it: blocks of 64 with double quantization (Dettmers et al. 2023,
    arXiv:2305.14314, section 3). Conv1D holds (in, out), and bitsandbytes quantizes (out, in).
    """
    transposed = is_conv1d(module)
    weight = module.weight.data.T if transposed else module.weight.data
    packed, state = quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    back = dequantize_4bit(packed, state)
    return back.T.contiguous() if transposed else back


@contextmanager
def quantized(modules: "Mapping[Place, nn.Module]", places: frozenset[Place]) -> Iterator[None]:
    """Inside, some modules have weights that went through NF4; afterwards the very same tensors as before."""
    originals = {place: modules[place].weight.data for place in places}
    try:
        for place in places:
            modules[place].weight.data = round_trip(modules[place])
        yield
    finally:
        for place, original in originals.items():
            modules[place].weight.data = original


def read(base: "PreTrainedModel", rows: "Sequence[TokenRow]") -> Reading:
    """Read the responses of `rows` with the base as it is now."""
    tokens = response_tokens(base, rows)
    states = response_states(base, rows)
    losses = token_losses(base, states, list(chain.from_iterable(tokens)))
    pooled = torch.stack([part.float().mean(dim=0) for part in states.split(list(map(len, tokens)))])
    return Reading(states=states, losses=losses, pooled=pooled.cpu().numpy())


def measure(base: "PreTrainedModel", variant: Variant, rows: "Sequence[TokenRow]", unquantized: Reading) -> Sensitivity:
    """Quantize the variant's modules, read `rows`, and put the weights back.

    Args:
        base: at 16 bits, as base_model.load gives it.
        unquantized: what `base` makes of the same rows.
    """
    modules = modules_of(base)
    with quantized(modules, variant.quantized):
        ours = read(base, rows)
    kl, _ = divergence(base, ours.states, unquantized.states)
    return Sensitivity(
        variant=variant,
        n_parameters=sum(modules[place].weight.numel() for place in variant.quantized),
        loss_nats=float(ours.losses.mean() - unquantized.losses.mean()),
        kl_nats=float(kl.mean()),
        cosine=float(row_cosines(ours.pooled, unquantized.pooled).mean()),
    )


def measure_all(found: Inputs, device: str, shown: Callable[[Sequence[Variant]], Iterable[Variant]]) -> BaseSensitivity:
    """Load the base at 16 bits and measure every variant of it on the validation rows.

    Args:
        device: "cuda" or "cpu".
        shown: hands the variants on one by one, and may show how far they are.
    Raises:
        ConfigError: the base is of no known family.
        TrialFailed: the device has too little memory.
    """
    workload = found.workload(native_dtype(device))
    rows = data.load(workload.data_folder)["validation"]
    with oom_as_failure():
        base = base_model.load(workload, "16bit", device)
        variants = variants_of(list(modules_of(base)))
        begin = time.perf_counter()
        unquantized = read(base, rows)
        measured = tuple(measure(base, variant, rows, unquantized) for variant in shown(variants))
    return BaseSensitivity(
        workload=workload,
        environment=environment(device),
        n_rows=len(rows),
        n_response_tokens=len(unquantized.losses),
        unquantized_loss_nats=float(unquantized.losses.mean()),
        variants_seconds=time.perf_counter() - begin,
        variants=measured,
    )
