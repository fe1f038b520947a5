"""What a user writes today: Ray Tune around the Hugging Face Trainer, peft and bitsandbytes.

python tests/bench/peer.py FOLDER ROWS.json --precision 16bit --steps 200

A plain script with no tricks and no deliberate slowness: bfloat16 weights and arithmetic, no gradient checkpointing,
the Trainer's own defaults otherwise. One process a trial, as Tune starts them. Imports nothing of this project. FOLDER
may hold a config and a tokenizer only; its weights are then random. The last line is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

START = perf_counter()  # without Tune, a trial is this process

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

N_TRAINING_ROWS, N_HELD_OUT_ROWS = 1000, 128


def text_of(row, end):
    context = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}\n\n{context}### Response:\n{row['output']}{end}"


def tokenized(source, tokenizer, max_length):
    """Training and held-out rows of a JSON file or a hub id."""
    is_file = Path(source).is_file()
    path, files = ("json", source) if is_file else (source, None)
    rows = load_dataset(path, data_files=files, split="train", trust_remote_code=False)
    rows = rows.shuffle(seed=0).select(range(min(len(rows), N_HELD_OUT_ROWS + N_TRAINING_ROWS)))
    tokens = rows.map(
        lambda row: tokenizer(text_of(row, tokenizer.eos_token), truncation=True, max_length=max_length),
        remove_columns=rows.column_names,
    )
    return tokens.select(range(N_HELD_OUT_ROWS, len(tokens))), tokens.select(range(N_HELD_OUT_ROWS))


def load_model(folder, precision, rank):
    quantization = None
    if precision == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantization,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        trust_remote_code=False,
    )
    if precision == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        r=rank,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["attn.c_attn"],
        fan_in_fan_out=precision == "16bit",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def train(config):
    """One trial: load, train, evaluate at the end."""
    tokenizer = AutoTokenizer.from_pretrained(config["folder"], trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token
    training_rows, held_out_rows = tokenized(config["rows"], tokenizer, config["max_length"])
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model=load_model(config["folder"], config["precision"], config["rank"]),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=config["steps"],
                per_device_train_batch_size=config["batch_size"],
                learning_rate=2e-4,
                bf16=True,
                optim="adamw_torch",
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=training_rows,
            eval_dataset=held_out_rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trained = trainer.train()
        held_out = trainer.evaluate()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "eval_loss_nats": held_out["eval_loss"],
        "train_seconds": trained.metrics["train_runtime"],
        "peak_memory_mib": peak / 2**20,
    }


def run_by_tune(config):
    """One trial by Ray Tune; its seconds begin when Ray is up."""
    import ray
    from ray import tune

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def trainable(config):
        tune.report(train(config))

    with TemporaryDirectory() as folder:
        start = perf_counter()
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": int(torch.cuda.is_available())}),
            param_space=config,
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        (result,) = tuner.fit()
        if result.error:
            raise result.error
        return {name: result.metrics[name] for name in ("eval_loss_nats", "train_seconds", "peak_memory_mib")} | {
            "seconds": perf_counter() - start,
            "tune": True,
        }


def with_weights(folder, scratch):
    """The folder itself, or a copy with random weights where it has none."""
    if any(Path(folder).glob("*.safetensors")):
        return str(Path(folder).resolve())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(scratch)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(scratch)
    return scratch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("rows", help="JSON file or hub id")
    parser.add_argument("--precision", choices=("16bit", "nf4"), default="16bit")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--without-tune", action="store_true", help="the same trial, in this process")
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        drawing = perf_counter()
        folder = with_weights(given.folder, scratch)
        drawn_seconds = perf_counter() - drawing
        rows = str(Path(given.rows).resolve()) if Path(given.rows).is_file() else given.rows
        config = vars(given) | {"folder": folder, "rows": rows}
        without_tune = config.pop("without_tune")
        if without_tune:
            found = train(config)
            found |= {"seconds": perf_counter() - START - drawn_seconds, "tune": False}
        else:
            found = run_by_tune(config)
    print(json.dumps({"precision": given.precision, "steps": given.steps, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
