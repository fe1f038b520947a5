"""What a stranger could hand over: markup in data rows, and Python beside a base model."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from orchestrator.figures import gallery
from orchestrator.report import content as report
from orchestrator.report import outputs
from tests.support.sweeps import WORKLOAD, make, snapshot, trial
from trainables import demo

EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>"
OWN_CODE = """
import transformers
from pathlib import Path

Path({mark!r}).touch()


class Config(transformers.GPT2Config):
    model_type = {model_type!r}


class Model(transformers.GPT2LMHeadModel):
    config_class = Config


class Tokenizer(transformers.PreTrainedTokenizerFast):
    pass
"""


def hostile_report(folder: Path) -> Path:
    """The report of a sweep whose every text from outside is markup."""
    workload = asdict(WORKLOAD) | {"data": EVIL, "base_model": EVIL}
    settings = make(base_model=EVIL, data=EVIL)
    trials = [trial(0, state="failed", reason=f"row 3: instruction {EVIL}", environment={"device": EVIL})]
    counts = {"read": 1, "train": 1, f"dropped: {EVIL}": 1}
    sweep = snapshot(settings, trials, {"workload": workload, "data_counts": counts})
    folder.mkdir(parents=True, exist_ok=True)
    return outputs.write_report(sweep, report.report_of(sweep, lambda config: None), gallery.of_sweep(sweep), folder)[1]


def with_code(folder: Path, model_type: str, *naming: str) -> tuple[Path, Path]:
    """A base with Python beside it that its files name; and the mark that this code leaves where it runs."""
    mark = folder.parent / f"{folder.name}-ran"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(demo.FOLDER / name, folder)
    named = {
        "config.json": {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "own_code.Tokenizer"]},
    }
    for name, classes in named.items():
        values = json.loads((demo.FOLDER / name).read_text())
        values |= {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Tokenizer"}
        values |= {"auto_map": classes} if name in naming else {}
        (folder / name).write_text(json.dumps(values))
    code = OWN_CODE.format(mark=str(mark), model_type=model_type)
    (folder / "own_code.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    return folder, mark
