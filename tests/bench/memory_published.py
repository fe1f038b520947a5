"""How far predictions are off of training peaks that others measured and published: tests/bench/memory_published.csv.

Sizes are in MiB, of torch.cuda.max_memory_allocated. The sources, and what each ran:

- fitcheck: Anassbzdd/fitcheck, data/measurements/t4-sweep-2026-09-15.json, by scripts/measure.py. Tesla T4, torch 2.14,
  transformers 5.17, peft 0.20; a plain script without autocast that holds `out` while `out.loss.backward()` runs.
- fms-acceleration: foundation-model-stack/fms-acceleration, scripts/benchmarks/refs/a100_80gb.csv. A100, torch 2.4.1,
  transformers 4.48, TRL's SFTTrainer in bfloat16. Without `prepare_kbit` the plugin's own preparation casts nothing.

No constant is fitted to these rows. Three parts of the prediction are there because of what the sources' code does:
the logits held in `out`; embeddings and head back in bfloat16 after TRL's preparation (peft_module_casting_to_bf16: the
source's own memory after training has them at 16 bits); the Trainer's outputs dropped before the backward pass.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from trainables.cost.gpus import SMALL_WORKSPACES_MIB
from trainables.cost.predicted_memory import breakdown_of, total_mib
from trainables.cost.recipe import Recipe, stock
from trainables.cost.shape import Shape
from trainables.models.families.gated import gated_shape

FILE = Path(__file__).with_suffix(".csv")
MAX_ERROR_PER_CENT = 5.0
MODEL_TYPES = {"SmolLM2": "llama", "TinyLlama": "llama", "Qwen2.5": "qwen2", "Mistral": "mistral"}
"""By the beginning of a model's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published peak, and what was run."""

    name: str
    shape: Shape
    recipe: Recipe
    peak_mib: float

    @property
    def predicted_mib(self) -> float:
        """On a GPU before compute capability 9, as all of these are."""
        return total_mib(breakdown_of(self.shape, self.recipe, workspaces_mib=SMALL_WORKSPACES_MIB))

    @property
    def error_per_cent(self) -> float:
        return 100 * (self.predicted_mib / self.peak_mib - 1)


def rows() -> list[Published]:
    """The published peaks in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [_published(row) for row in csv.DictReader(file)]


def _published(row: dict[str, str]) -> Published:
    recipe = stock(
        precision=row["precision"],
        rank=int(row["rank"]),
        targets=tuple(f"{name}_proj" for name in row["targets"].split()),
        batch_size=int(row["batch"]),
        max_length_tokens=int(row["length"]),
        compute_dtype=row["dtype"],
        double_quantization=row["double_quantization"] == "1",
        gradient_checkpointing=row["gradient_checkpointing"] == "1",
        prepare_kbit=row["prepare_kbit"] == "1",
    )
    prepared = ", prepared" if recipe.prepare_kbit else ""
    name = f"{row['model']} {row['precision']} {row['batch']} x {row['length']}{prepared}"
    return Published(name=name, shape=_shape(row), recipe=recipe, peak_mib=float(row["peak_mib"]))


def _shape(row: dict[str, str]) -> Shape:
    sizes = {
        "hidden_size": "hidden",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "intermediate_size": "intermediate",
        "vocab_size": "vocab",
        "max_position_embeddings": "length",
    }
    values = {name: int(row[column]) for name, column in sizes.items()}
    (model_type,) = [MODEL_TYPES[start] for start in MODEL_TYPES if row["model"].startswith(start)]
    others = {"model_type": model_type, "hidden_act": "silu", "tie_word_embeddings": row["tied"] == "1"}
    shape = gated_shape(values | others)
    assert shape is not None, row
    return shape


def show() -> None:
    """The table."""
    print("Published peaks of stock scripts (MiB); no constant is fitted to them\n")
    print(f"{'row':<44}  {'published':>9}  {'predicted':>9}  {'error %':>7}")
    found = rows()
    for row in found:
        print(f"{row.name:<44}  {row.peak_mib:9.1f}  {row.predicted_mib:9.1f}  {row.error_per_cent:+7.2f}")
    n_outside = sum(abs(row.error_per_cent) > MAX_ERROR_PER_CENT for row in found)
    print(f"\n{n_outside} of {len(found)} off by more than {MAX_ERROR_PER_CENT:g} %\n")


if __name__ == "__main__":
    show()
