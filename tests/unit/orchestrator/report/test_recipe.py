"""What one takes away: code that runs with peft, and YAML whose keys are those of the programs that read it."""

from dataclasses import asdict, replace

import datasets
import pytest
import yaml

from orchestrator.analysis.budgets import FINISHED
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.report import recipe
from orchestrator.settings import stored
from tests.support.in_process import called
from tests.support.sweeps import REPO, TPE, WORKLOAD, Desk, make
from trainables.models import lora
from trainables.models.families import FAMILIES
from trainables.values.config import TrialConfig

CONFIG = TrialConfig(precision="nf4", rank=8, alpha=16, targets=("q_proj", "v_proj"), learning_rate=3e-4)
CONFIGS = (
    CONFIG,
    replace(CONFIG, precision="16bit", rank_stabilized=True, schedule="cosine", gradient_checkpointing=True),
    replace(CONFIG, optimizer="adamw_8bit", warmup_share=0.1),
    replace(CONFIG, precision="16bit", targets=("attn.c_attn",), alpha=0.5),
)
KINDS = ("Alpaca", "chat", "completion")


def keys_of(program: str) -> set[str]:
    """All keys that the classes of a program have, from the list of what was read."""
    found: set[str] = set()
    reading = False
    for line in (REPO / "tests/support/trainer_keys.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            reading = line.startswith(f"[{program}]")
        elif reading:
            found.update(line.split())
    assert found, program
    return found


def sweep_of(kind: str = "Alpaca") -> SweepSnapshot:
    workload = asdict(replace(WORKLOAD, row_kind=kind, compute_dtype="bfloat16"))
    settings = make(TPE, base_model="demo", data="mine.jsonl")
    return SweepSnapshot(settings=settings, facts={"workload": workload})


def of_training_arguments() -> set[str]:
    from transformers import TrainingArguments

    return set(TrainingArguments.__dataclass_fields__)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("program", ["axolotl", "trl", "llama-factory"])
def test_every_key_is_one_of_the_programs_own_config_classes(program, config, kind):
    values = yaml.safe_load(recipe.recipe(program, config, sweep_of(kind)))
    known = keys_of(program) | (set() if program == "axolotl" else of_training_arguments())
    assert values.keys() - known == set()
    for data in values.get("datasets", ()) if program == "axolotl" else ():
        inner = data["type"] if isinstance(data["type"], dict) else {}
        assert {*data, *inner} - keys_of("axolotl datasets") == set()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_three_programs_are_told_the_settings_of_the_trial(config):
    said = {}
    for program in ("axolotl", "trl", "llama-factory"):
        said[program] = yaml.safe_load(recipe.recipe(program, config, sweep_of()))
    names = {
        "axolotl": ("lora_r", "lora_alpha", "lora_dropout", "sequence_len", "micro_batch_size", "peft_use_rslora"),
        "trl": ("lora_r", "lora_alpha", "lora_dropout", "max_length", "per_device_train_batch_size", "use_rslora"),
        "llama-factory": (
            *("lora_rank", "lora_alpha", "lora_dropout", "cutoff_len", "per_device_train_batch_size", "use_rslora"),
        ),
    }
    c = config
    expected = (c.rank, c.alpha, c.dropout, c.max_length_tokens, c.batch_size, c.rank_stabilized)
    for program, values in said.items():
        assert tuple(values[name] for name in names[program]) == expected
        assert (values["max_steps"], values["learning_rate"], values["seed"]) == (c.max_steps, c.learning_rate, c.seed)
        four_bits = values.get("load_in_4bit", values.get("quantization_bit") == 4)
        assert four_bits == (c.precision == "nf4")
        assert values["warmup_steps"] == round(c.warmup_share * c.max_steps)
        assert (values["bf16"], values["fp16"]) == (True, False)
    assert said["llama-factory"]["lora_target"].split(",") == said["trl"]["lora_target_modules"] == [*c.targets]


def test_names_of_optimizer_and_schedule_are_those_of_transformers():
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    for config in CONFIGS:
        values = yaml.safe_load(recipe.recipe("trl", config, sweep_of()))
        assert OptimizerNames(values["optim"])
        assert SchedulerType(values["lr_scheduler_type"])


def test_a_scale_that_is_no_whole_number_and_data_of_another_form_are_said():
    assert "takes whole numbers" in recipe.recipe("trl", CONFIGS[-1], sweep_of())
    assert "takes whole numbers" not in recipe.recipe("trl", CONFIG, sweep_of())
    assert "prompt and completion" in recipe.recipe("trl", CONFIG, sweep_of())
    assert "dataset_info.json" in recipe.recipe("llama-factory", CONFIG, sweep_of())


def test_a_pinned_base_other_columns_a_split_and_kept_modules_are_not_lost():
    kept = replace(CONFIG, keep_16bit=("model.layers.29",))
    own = make(TPE, base_model="org/name@v1", data="org/rows", data_split="test", columns="instruction=question")
    sweep = replace(sweep_of(), settings=own)
    keys = {"axolotl": ("base_model", "revision_of_model")}
    for program in ("axolotl", "trl", "llama-factory"):
        text = recipe.recipe(program, kept, sweep)
        values = yaml.safe_load(text)
        name, revision = keys.get(program, ("model_name_or_path", "model_revision"))
        assert (values[name], values[revision]) == ("org/name", "v1")
        assert all(word in text for word in ("model.layers.29", "split test", "question"))
    data = yaml.safe_load(recipe.recipe("axolotl", kept, sweep))["datasets"][0]["type"]
    assert (data["field_instruction"], data["field_output"]) == ("question", "output")
    code = recipe.peft_code(kept, sweep)
    compile(code, "best", "exec")
    assert '"org/name",\n    revision="v1",\n' in code
    assert '"lm_head",\n        "model.layers.29\\\\.",\n' in code


@pytest.mark.parametrize(
    ("data", "builder"),
    [("mine.jsonl", "json"), ("rows/mine.JSON", "json"), ("mine.csv", "csv"), ("a.parquet", "parquet")],
)
def test_trl_is_told_a_file_as_datasets_reads_it_and_a_data_set_of_the_hub_by_its_name(data, builder):
    def told(name: str) -> dict:
        own = make(TPE, base_model="demo", data=name)
        return yaml.safe_load(recipe.recipe("trl", CONFIG, replace(sweep_of(), settings=own)))

    of_file = told(data)
    assert of_file["datasets"] == [{"path": builder, "data_files": data}]
    assert of_file["datasets"][0].keys() <= keys_of("trl datasets")
    assert "dataset_name" not in of_file
    of_hub = told("org/rows")
    assert (of_hub["dataset_name"], "datasets" in of_hub) == ("org/rows", False)


def test_what_trl_is_told_of_a_file_is_read_by_datasets_and_taken_by_trls_own_class(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    own = make(TPE, base_model="demo", data=str(tmp_path / "mine.jsonl"))
    (said,) = yaml.safe_load(recipe.recipe("trl", CONFIG, replace(sweep_of(), settings=own)))["datasets"]
    rows = datasets.load_dataset(**said, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.to_list() == [{"prompt": "a", "completion": "b"}]
    trl = pytest.importorskip("trl", reason="needs trl")
    assert trl.scripts.utils.DatasetConfig(**said).data_files == said["data_files"]


def test_no_name_ends_a_comment():
    own = make(TPE, base_model="demo", data="rows\nlora_r: 999\n.jsonl")
    text = recipe.recipe("llama-factory", CONFIG, replace(sweep_of(), settings=own))
    assert yaml.safe_load(text)["lora_rank"] == CONFIG.rank
    assert "lora_r" not in yaml.safe_load(text)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_printed_code_makes_the_trials_own_lora_config(config):
    code = recipe.peft_code(config, sweep_of())
    head, _, tail = code.partition("base = AutoModel")
    _, _, tail = tail.partition("\n)\n")
    names: dict = {"get_peft_model": lambda base, lora: lora, "base": None}
    imports = head.replace("from peft import LoraConfig, get_peft_model", "from peft import LoraConfig")
    exec(compile(imports + tail, "best", "exec"), names)
    assert names["lora"].to_dict() == lora._lora_config(config).to_dict()
    assert ("quantization" in names) == (config.precision == "nf4")
    if config.precision == "nf4":
        quantization = names["quantization"]
        kind = quantization.bnb_4bit_quant_type, quantization.bnb_4bit_use_double_quant
        assert (quantization.load_in_4bit, *kind) == (True, "nf4", True)
    assert max(map(len, code.splitlines())) <= 80


def test_best_prints_the_code_and_with_as_the_yaml_alone(tmp_path):
    desk = Desk(tmp_path / "mlflow_runs/sweeps/t", make(TPE, name="t", n_trials=3))
    stored.save(desk.settings, desk.folder)
    desk.finish()
    plain = called("best", cwd=tmp_path)
    assert "lora = LoraConfig(" in plain.out
    assert plain.out.startswith("trial ")
    desk.ledger.set_fact(FINISHED, False)
    assert called("best", cwd=tmp_path).out.startswith("So far, as the sweep is stopped:\ntrial ")
    assert called("best", "--json", cwd=tmp_path).json["state"] == "stopped"
    for program in ("axolotl", "trl", "llama-factory"):
        told = called("best", "t", "--as", program, cwd=tmp_path)
        assert yaml.safe_load(told.out)
        assert called("best", "t", "--as", program, "--json", cwd=tmp_path).json["code"] == told.out
    wrong = called("best", "t", "--as", "axolotle", cwd=tmp_path)
    assert (wrong.code, "did you mean 'axolotl'" in wrong.err) == (2, True)


def test_every_family_has_targets_that_the_code_names():
    for family in FAMILIES:
        config = replace(CONFIG, targets=family.targets[:1])
        assert family.targets[0] in recipe.peft_code(config, sweep_of())
