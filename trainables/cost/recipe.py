"""How a model is tuned, as far as memory depends on it: by the program's own loops, or by a stock script."""

from dataclasses import dataclass
from typing import Literal

from trainables.values.config import ComputeDtype, Precision, TrialConfig

Script = Literal["lean", "standard", "stock"]
"""The program's two loops, and a script of transformers, peft and bitsandbytes as their pages show it."""
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the memory of a training step depends on beside the shape of the base.

    Attributes:
        precision, rank, targets, batch_size, max_length_tokens, keep_16bit: see TrialConfig.
        compute_dtype: of weights at 16 bits and of matrix products.
        script: who runs the step.
        dropout: whether the adapter's input has dropout.
        adapter_dtype: of the adapter's inputs and products, as they are kept for the backward pass; its weights,
            gradients and moments are float32.
        keeps_masks: dropout keeps a byte for each input, as torch.nn.Dropout does.
        loss_in_place: the lean loop's loss writes its gradient over the logits of a chunk, by one kernel on a GPU.
        double_quantization: the scales of 4-bit weights are quantized themselves.
        gradient_checkpointing: a block keeps its input alone and runs forward again on the way back (Chen et al.
            2016, arXiv:1604.06174).
        prepare_kbit: after peft's prepare_model_for_kbit_training: weights that are not quantized, and with them the
            residual stream, are float32.
        autocast: a stock script runs under the Hugging Face Trainer's mixed precision, as TRL's SFTTrainer sets it up:
            products and attention are in the compute dtype whatever comes in; after the preparation embeddings and
            head are put back to it; the outputs are dropped before the backward pass. A plain script does none of it.
        optimizer: of bitsandbytes' those in 8 bits, and the paged ones, whose moments the host can hold.
    """

    precision: Precision
    rank: int
    targets: tuple[str, ...]
    batch_size: int
    max_length_tokens: int
    compute_dtype: ComputeDtype
    script: Script
    dropout: bool
    adapter_dtype: ComputeDtype
    keeps_masks: bool = False
    loss_in_place: bool = True
    double_quantization: bool = True
    gradient_checkpointing: bool = False
    prepare_kbit: bool = False
    autocast: bool = False
    optimizer: Optimizer = "adamw"
    keep_16bit: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Of a full batch."""
        return self.batch_size * self.max_length_tokens

    @property
    def is_quantized(self) -> bool:
        return self.precision == "nf4"

    @property
    def stream_width(self) -> int:
        """Bytes an element of the residual stream, of norms, embeddings and of what linear modules put out."""
        return 4 if self.prepare_kbit else WIDTH[self.compute_dtype]

    @property
    def embedding_width(self) -> int:
        """Bytes an element of embeddings and head."""
        return WIDTH[self.compute_dtype] if self.autocast else self.stream_width

    @property
    def product_width(self) -> int:
        """Bytes an element of attention's inputs and of logits."""
        return WIDTH[self.compute_dtype] if self.autocast else self.stream_width

    @property
    def adapter_width(self) -> int:
        """Bytes an element of the adapter's inputs and products."""
        return WIDTH[self.adapter_dtype]


def recipe_of(config: TrialConfig, dtype: ComputeDtype) -> Recipe:
    """The recipe of a trial: adapter products in the compute dtype, and a mask that is computed again."""
    return Recipe(
        precision=config.precision,
        rank=config.rank,
        targets=config.targets,
        batch_size=config.batch_size,
        max_length_tokens=config.max_length_tokens,
        compute_dtype=dtype,
        script=config.loop,
        dropout=config.dropout > 0,
        adapter_dtype=dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        optimizer=config.optimizer,
        keep_16bit=config.keep_16bit,
    )


def stock(
    *,
    precision: Precision,
    rank: int,
    targets: tuple[str, ...],
    batch_size: int,
    max_length_tokens: int,
    compute_dtype: ComputeDtype,
    dropout: bool = False,
    double_quantization: bool = True,
    gradient_checkpointing: bool = False,
    prepare_kbit: bool = False,
    optimizer: Optimizer = "adamw",
) -> Recipe:
    """The recipe of a stock script: in bfloat16 that of TRL's SFTTrainer, else a plain one, see Recipe.autocast."""
    autocast = compute_dtype == "bfloat16"
    return Recipe(
        precision=precision,
        rank=rank,
        targets=targets,
        batch_size=batch_size,
        max_length_tokens=max_length_tokens,
        compute_dtype=compute_dtype,
        script="stock",
        dropout=dropout,
        adapter_dtype=compute_dtype if autocast else "float32",
        keeps_masks=True,
        double_quantization=double_quantization,
        gradient_checkpointing=gradient_checkpointing,
        prepare_kbit=prepare_kbit,
        autocast=autocast,
        optimizer=optimizer,
    )
