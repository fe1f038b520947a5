"""Milliseconds and MiB of the captured lean step for models of several families, and what each fused kernel buys.

    python -m tests.bench.families_speed llama-1b [--precision nf4] [--parts] [--liger] [--trainer] [--trl] [--profile]
        [--tokens 128] [--together 2 8]

Weights are random and drawn on the GPU; neither a hub nor Ray is needed. One step: 4 rows of 256 tokens (--tokens),
each supervised, r 16 on all linear modules (GPT-2: c_attn), bfloat16, forward to AdamW, replayed as a CUDA graph.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import bitsandbytes
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trainables.data.tokens import TokenRow
from trainables.evaluation.held_out import eval_batches
from trainables.models import block_ops, chunked_loss, dropout_mask, fused_blocks, lora, lora_linear
from trainables.models.families.gpt2 import TARGETS as GPT2_TARGETS
from trainables.models.lora_linear import is_conv1d
from trainables.training.batches import full_batch, packed
from trainables.training.eager import EagerEngine
from trainables.training.graph import GraphEngine
from trainables.training.step_graphs import StepGraphs
from trainables.values.config import TrialConfig

MIB = 2**20
N_TIMINGS, N_REPLAYS = 5, 20
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS: dict[str, tuple[Callable[[], PretrainedConfig], tuple[str, ...]]] = {
    "llama-1b": (
        lambda: LlamaConfig(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            vocab_size=128256,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        ),
        TARGETS,
    ),
    "qwen3-0.6b": (
        lambda: Qwen3Config(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        ),
        TARGETS,
    ),
    "llama-8b": (
        lambda: LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        ),
        TARGETS,
    ),
    "gemma3-270m": (
        lambda: Gemma3TextConfig(
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=262144,
            max_position_embeddings=32768,
            sliding_window=512,
            tie_word_embeddings=True,
        ),
        TARGETS,
    ),
    "gpt2-medium": (
        lambda: GPT2Config(
            n_embd=1024, n_layer=24, n_head=16, vocab_size=50257, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
        ),
        GPT2_TARGETS[:1],
    ),
}
"""Shapes as published, each with the modules that get an adapter."""


def draw(shape: PretrainedConfig, precision: str) -> nn.Module:
    """A frozen model of random weights on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.requires_grad_(False)
    if precision == "nf4":
        _quantize(model)
    gc.collect()
    torch.cuda.empty_cache()
    return model.eval()


def _quantize(model: nn.Module) -> None:
    """NF4 with double quantization on every linear module of the blocks, as bitsandbytes loads a base."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if module is head or not (isinstance(module, nn.Linear) or is_conv1d(module)):
            continue
        weight = module.weight.data.T.contiguous() if is_conv1d(module) else module.weight.data
        linear = bitsandbytes.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=module.bias is not None, compute_dtype=torch.bfloat16,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        linear.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=linear
        ).to("cuda")
        linear.bias = module.bias
        model.set_submodule(name, linear.requires_grad_(False))
    model.is_loaded_in_4bit = True


def trial_of(targets: tuple[str, ...], precision: str, dropout: float) -> TrialConfig:
    return TrialConfig(
        precision=precision, rank=16, alpha=16, targets=targets, dropout=dropout, engine="graph", loop="lean"
    )


def peak_mib(base: nn.Module, config: TrialConfig) -> float:
    """Peak of an eager step, the optimizer's state included."""
    model = lora.attach(base, config, base_name="random")
    engine = EagerEngine(model, config, compute_dtype="bfloat16", device="cuda")
    batch = full_batch(config, base.config.vocab_size)
    engine.step(*batch)
    torch.cuda.reset_peak_memory_stats()
    engine.step(*batch)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / MIB
    del engine
    lora.detach(model)
    gc.collect()
    return peak


def captured(base: nn.Module, config: TrialConfig) -> Callable[[], None]:
    """A replay of the captured step."""
    row = TokenRow(input_ids=tuple(range(1, 33)), n_prompt_tokens=4)
    graphs = StepGraphs(
        base,
        config,
        eval_batches=eval_batches(base, [row] * 4),
        compute_dtype="bfloat16",
        pool=torch.cuda.graph_pool_handle(),
        stream=torch.cuda.Stream(),
    )
    shape, vector = packed(full_batch(config, base.config.vocab_size), config.loop)
    graphs.capture([shape])
    engine = GraphEngine(lora.fresh_matrices(base, config).values(), config, graphs)
    inputs, rate = vector.cuda(), torch.tensor(config.learning_rate, device="cuda")
    losses = engine.run([(shape, vector)] * 21)
    assert int(engine.n_bad_gradients) == 0
    print(f"    loss {losses[0]:.4f} -> {losses[-1]:.4f} nats in 20 steps", flush=True)
    return lambda: graphs.replay(shape, inputs, rate)


def milliseconds(replay: Callable[[], None]) -> list[float]:
    """Of one replay, N_TIMINGS times the mean of N_REPLAYS."""
    times = []
    for _ in range(N_TIMINGS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(N_REPLAYS):
            replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / N_REPLAYS)
    return times


def measure(base: nn.Module, config: TrialConfig, label: str) -> float:
    replay = captured(base, config)
    times = milliseconds(replay)
    del replay
    gc.collect()
    torch.cuda.empty_cache()
    spread = f"{min(times):.2f} to {max(times):.2f}"
    print(f"{label:<48} {statistics.median(times):7.2f} ms ({spread})", flush=True)
    return statistics.median(times)


def show_together(base: nn.Module, config: TrialConfig, n_trials: int, alone: float) -> None:
    """A step over the rows of several trials, as if their adapters were one: packing them cannot take less.

    Args:
        alone: ms of a step of one trial.
    """
    together = replace(config, batch_size=n_trials * config.batch_size)
    label = f"  the rows of {n_trials} trials, {config.max_length_tokens} tokens each"
    each = measure(base, together, label) / n_trials
    print(f"    {each:.2f} ms a trial and step, {alone / each:.2f} times as many steps", flush=True)


def show_profile(base: nn.Module, config: TrialConfig, n_rows: int = 25) -> None:
    """The kernels that take most of five replays."""
    replay = captured(base, config)
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            replay()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    n_kernels = sum(event.count for event in events) // 5
    print(f"{n_kernels} kernels a step, {total / 5000:.2f} ms of kernels a step")
    print(f"{'ms a step':>10} {'calls':>6} {'us each':>8}  kernel")
    for event in events[:n_rows]:
        time = event.self_device_time_total
        print(f"{time / 5000:10.3f} {event.count // 5:6d} {time / event.count:8.2f}  {event.key[:110]}")


@contextmanager
def without(module: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of a module has another value: None in place of kernels is plain PyTorch."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def show_parts(base: nn.Module, config: TrialConfig, whole: float) -> None:
    """The step without each of the kernels."""
    plain = {
        "block kernels (norm, rotary, gate)": (fused_blocks, "FUSIBLE", {}),
        "the dropout's kernel": (dropout_mask, "mask_kernels", None),
        "the adapter's kernels": (lora_linear, "adapter_kernels", None),
        "the loss's kernel": (chunked_loss, "loss_kernels", None),
        "block kernels, plain formulas": (block_ops, "block_kernels", None),
    }
    for label, change in plain.items():
        with without(*change):
            slower = measure(base, config, f"  without {label}")
        print(f"    they buy {slower - whole:.2f} ms", flush=True)


def show_liger(base: nn.Module, config: TrialConfig) -> None:
    """The step with liger-kernel's norm, rotary and gate in place of this project's."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    class Norm:
        @staticmethod
        def apply(x, weight, epsilon, offset):
            return LigerRMSNormFunction.apply(x, weight, epsilon, offset, "gemma" if offset else "llama", False)

    class Gate:
        @staticmethod
        def apply(gate, up, activation):
            return (LigerSiLUMulFunction if activation == "silu" else LigerGELUMulFunction).apply(gate, up)

    class Rope:
        @staticmethod
        def apply(q, k, cos, sin):
            return LigerRopeFunction.apply(q, k, cos, sin)

    with (
        without(fused_blocks, "RMSNorm", Norm),
        without(fused_blocks, "Gated", Gate),
        without(fused_blocks, "Rotary", Rope),
    ):
        measure(base, config, "  liger-kernel's norm, rotary and gate")


class StepTimes(TrainerCallback):
    """Seconds at which steps of a Trainer end, the device having done them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(perf_counter())
        if len(self.seconds) == 2:
            torch.cuda.reset_peak_memory_stats()


def show_trainer(base: nn.Module, config: TrialConfig, *, trl: bool = False, n_steps: int = 25) -> None:
    """The Hugging Face Trainer with peft, as a user writes it: bf16=True, full logits, no gradient checkpointing.

    Args:
        trl: TRL's SFTTrainer in its place, with TRL's own defaults but for what is set here.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # an engine has set its precision
    model = lora.attach(base, config, base_name="random")
    batch = full_batch(config, base.config.vocab_size).input_ids
    rows = [{"input_ids": row, "labels": row} for row in batch.tolist()] * n_steps
    times = StepTimes()
    with TemporaryDirectory() as folder:
        same = {
            "output_dir": folder,
            "max_steps": n_steps,
            "per_device_train_batch_size": config.batch_size,
            "bf16": base.device.type == "cuda",
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "logging_steps": 1000,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "gradient_checkpointing": False,
        }
        trainer = _sft_trainer(model, rows, same) if trl else _trainer(model, rows, same)
        trainer.add_callback(times)
        trainer.train()
    steps = [1000 * (end - start) for start, end in pairwise(times.seconds[4:])]
    peak = torch.cuda.max_memory_allocated() / MIB
    name = "TRL's SFTTrainer" if trl else "Hugging Face Trainer"
    print(f"  {name} and peft, {peak:,.0f} MiB: {statistics.median(steps):.2f} ms", flush=True)
    lora.detach(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    torch.cuda.empty_cache()


def _trainer(model: nn.Module, rows: list[dict[str, list[int]]], same: dict[str, Any]) -> Trainer:
    rows_of_tensors = [{name: torch.tensor(ids) for name, ids in row.items()} for row in rows]
    return Trainer(model=model, args=TrainingArguments(**same), train_dataset=rows_of_tensors)


def _sft_trainer(model: nn.Module, rows: list[dict[str, list[int]]], same: dict[str, Any]) -> Trainer:
    """Rows are tokens already; the tokenizer only names the token that pads, which no row needs."""
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")
    arguments = SFTConfig(**same, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*MODELS])
    parser.add_argument("--precision", choices=["16bit", "nf4", "both"], default="both")
    parser.add_argument("--dropout", type=float, nargs="*", default=[0.05, 0.0])
    parser.add_argument("--parts", action="store_true", help="the step without each of the kernels")
    parser.add_argument("--liger", action="store_true", help="the step with liger-kernel's kernels")
    parser.add_argument("--trainer", action="store_true", help="the Hugging Face Trainer with peft beside it")
    parser.add_argument("--trl", action="store_true", help="TRL's SFTTrainer beside it (needs trl)")
    parser.add_argument("--profile", action="store_true", help="the kernels that take most of the step")
    parser.add_argument("--tokens", type=int, default=256, help="of each row")
    parser.add_argument(
        "--together",
        type=int,
        nargs="*",
        default=[],
        help="rows of so many trials in one step: the least that packing takes",
    )
    arguments = parser.parse_args()
    shape, targets = MODELS[arguments.model]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.model}, mask kernels:", end=" ")
    print(dropout_mask.mask_kernels is not None)
    for precision in ("16bit", "nf4") if arguments.precision == "both" else (arguments.precision,):
        base = draw(shape(), precision)
        times = []
        for dropout in arguments.dropout:
            config = replace(trial_of(targets, precision, dropout), max_length_tokens=arguments.tokens)
            peak = peak_mib(base, config)
            times.append(measure(base, config, f"{arguments.model} {precision} dropout {dropout}, {peak:,.0f} MiB"))
        if len(times) == 2:
            print(f"    dropout costs {times[0] - times[1]:.2f} ms, {(times[0] / times[1] - 1) * 100:.1f} %")
        config = replace(trial_of(targets, precision, arguments.dropout[0]), max_length_tokens=arguments.tokens)
        for n_trials in arguments.together:
            show_together(base, config, n_trials, times[0])
        if arguments.parts:
            show_parts(base, config, times[0])
        if arguments.liger:
            show_liger(base, config)
        if arguments.trainer:
            show_trainer(base, config)
        if arguments.trl:
            show_trainer(base, config, trl=True)
        if arguments.profile:
            show_profile(base, config)
        del base
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
