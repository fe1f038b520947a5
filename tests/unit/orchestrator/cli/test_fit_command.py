"""`fit` as a user runs it: a table, one point, and what it refuses."""

import json
import sys

import pytest

from tests.bench.memory_published import rows
from tests.support.in_process import called
from tests.support.sweeps import command
from trainables.values.errors import Unreachable

CONFIG = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
POINT = ("--precision", "nf4", "--loop", "standard", "--batch-size", "2", "--max-length-tokens", "512")
PUBLISHED = (
    *("--rank", "32", "--targets", "q_proj+k_proj+v_proj+o_proj", "--compute-dtype", "float16"),
    *("--gradient-checkpointing", "--prepare-kbit", "--no-double-quantization"),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_published_point_is_predicted_from_a_config_alone(folder):
    (published,) = [row for row in rows() if row.name == "SmolLM2-135M nf4 2 x 512, prepared"]
    for model in ("base", "base/config.json", "random:base", str(folder / "base")):
        finished = called("fit", model, *POINT, *PUBLISHED, "--json", cwd=folder)
        assert finished.code == 0, finished.err
        point = finished.json
        assert point["peak_mib"] == pytest.approx(published.predicted_mib, abs=0.01)
        assert point["peak_mib"] == pytest.approx(sum(point["breakdown"].values()), abs=0.1)
        assert point["resident_mib"] < point["peak_mib"]
        assert point["prepare_kbit"] is True
        assert point["double_quantization"] is False


def test_neither_torch_nor_ray_is_imported(folder):
    program = (
        *(sys.executable, "-c"),
        "import sys; from orchestrator.cli.main import main\n"
        "try: main()\nfinally: print({'ray', 'torch', 'transformers', 'mlflow'} & set(sys.modules))",
    )
    finished = command("fit", "base", cwd=folder, program=program)
    assert finished.out.splitlines()[-1] == "set()", finished.err


@pytest.mark.parametrize("device", [("--gpu", "T4"), ("--memory", "16GiB"), ()], ids=str)
@pytest.mark.parametrize("model", ["base", "gpt2-xl", "demo"])
def test_the_table_fits_80_columns_and_has_every_recipe_once(model, device, folder):
    finished = called("fit", model, *device, cwd=folder)
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert max(map(len, lines)) <= 80
    recipes = [line for line in lines if line.startswith(("standard  ", "lean  "))]
    whole = called("fit", model, *device, "--json", cwd=folder).json
    assert len(recipes) == len(whole["points"]) == 8 * len({p["max_length_tokens"] for p in whole["points"]})
    in_gib = model != "demo"  # of which nothing needs one
    assert any(line.endswith(f"tokens, {'GiB' if in_gib else 'MiB'}") for line in lines)
    for line, point in zip(recipes, whole["points"], strict=True):
        mib = point["peak_mib"]
        assert (f"{mib / 1024:.2f}" if in_gib else f"{mib:.1f}") in line.split()
    assert sum("4 bits need less" in line for line in lines) == 4


def test_a_stock_script_prepares_its_4_bit_base_in_the_table_and_a_point_only_where_it_is_said(folder):
    for point in called("fit", "base", "--json", cwd=folder).json["points"]:
        assert point["prepare_kbit"] == ((point["precision"], point["loop"]) == ("nf4", "standard"))
    assert called("fit", "base", *POINT, "--json", cwd=folder).json["prepare_kbit"] is False


def test_the_exit_code_says_whether_it_fits(folder):
    point = ("fit", "base", *POINT, *PUBLISHED)
    peak = called(*point, "--json", cwd=folder).json["peak_mib"]
    for memory, code, fits in ((peak + 1, 0, True), (peak - 1, 1, False)):
        finished = called(*point, "--memory", f"{memory:.2f}MiB", "--json", cwd=folder)
        assert finished.code == code
        assert finished.json["fits"] is fits
    assert called("fit", "base", "--memory", "100MiB", cwd=folder).code == 1
    assert called("fit", "base", "--gpu", "T4", cwd=folder).code == 0


def test_a_group_of_targets_is_the_modules_that_it_stands_for(folder):
    named = [
        called("fit", "base", *POINT, "--targets", targets, "--json", cwd=folder).json
        for targets in ("attention", "q_proj,k_proj,v_proj,o_proj", "o_proj+qkv")
    ]
    assert named[0] == named[1] == named[2]
    assert named[0]["targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_a_gpu_without_bfloat16_computes_in_float16(folder):
    dtypes = [
        called("fit", "base", *POINT, "--gpu", g, "--json", cwd=folder).json["compute_dtype"] for g in ("T4", "L4")
    ]
    assert dtypes == ["float16", "bfloat16"]


def test_where_only_4_bits_fit_the_missing_baseline_is_named(folder):
    points = called("fit", "gpt2-xl", "--loop", "lean", "--json", cwd=folder).json["points"]
    peaks = {
        p["precision"]: p["peak_mib"] for p in points if p["max_length_tokens"] == 512 and p["gradient_checkpointing"]
    }
    between = (peaks["nf4"] + peaks["16bit"]) / 2
    finished = called("fit", "gpt2-xl", "--loop", "lean", "--memory", f"{between:.0f}MiB", cwd=folder)
    needs = f"16-bit baseline needs {peaks['16bit'] / 1024:.1f} GiB, so they cannot be compared here"
    assert f"lean, blocks run again, 512 tokens: 4 bits fit; their\n  {needs}\n" in finished.out
    assert max(map(len, finished.out.splitlines())) <= 80


REFUSED = {
    "precision": (("--precision", "nf5"), "--precision: no precision 'nf5'; did you mean 'nf4'?"),
    "4 bits": (("--precision", "4bit"), "--precision: no precision '4bit'; did you mean 'nf4'?"),
    "loop": (("--loop", "leen"), "--loop: no loop 'leen'; did you mean 'lean'?"),
    "optimizer": (("--optimizer", "adam_8bit"), "--optimizer: no optimizer 'adam_8bit'; did you mean 'adamw_8bit'?"),
    "dtype": (("--compute-dtype", "bf16"), "--compute-dtype: no --compute-dtype 'bf16'; did you mean 'bfloat16'?"),
    "targets": (("--targets", "q_pro"), "--targets: no module 'q_pro'; did you mean 'q_proj'?"),
    "another family's": (("--targets", "attn.c_attn"), "--targets: no module 'attn.c_attn'; did you mean 'attention'?"),
    "batch": (("--batch-size", "0"), "--batch-size: "),
    "rank": (("--rank", "-3"), "--rank: "),
    "dropout": (("--dropout", "1"), "--dropout: "),
    "length": (("--max-length-tokens", "9000"), "--max-length-tokens is 9000, but the model has 8192 positions"),
    "gpu": (("--gpu", "H1000"), "--gpu: no GPU 'H1000'; did you mean 'H100'?"),
    "memory": (("--memory", "lots"), "--memory must be a size such as 16GiB or 1500MiB, got 'lots'"),
    "both": (("--gpu", "T4", "--memory", "16GiB"), "--memory: give --gpu or --memory, not both"),
    "lean, prepared": (("--loop", "lean", "--prepare-kbit"), "--prepare-kbit is for a stock script"),
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_setting_is_refused_by_its_name(flags, message, folder):
    finished = called("fit", "base", *flags, cwd=folder)
    assert finished.code == 2
    assert finished.err.startswith(f"error: {message}"), finished.err
    assert finished.out == ""


BAD_CONFIGS = {
    "no JSON": ("{", "is not a JSON object"),
    "no object": ("[1]", "is not a JSON object"),
    "another kind": (
        json.dumps(CONFIG | {"model_type": "lama"}),
        "no formula for model_type 'lama'; did you mean 'llama'?",
    ),
    "no kind": (json.dumps({}), "no formula for model_type 'None'"),
    "no width": (json.dumps({k: v for k, v in CONFIG.items() if k != "hidden_size"}), "does not say 'hidden_size'"),
    "a width in words": (json.dumps(CONFIG | {"hidden_size": "wide"}), "has a size that cannot be"),
    "no heads": (json.dumps(CONFIG | {"num_attention_heads": 0}), "has a size that cannot be"),
    "fewer than no layers": (json.dumps(CONFIG | {"num_hidden_layers": -1}), "n_layer is -1"),
    "uneven heads": (json.dumps(CONFIG | {"num_key_value_heads": 2}), "9 heads cannot share 2 key heads evenly"),
    "another activation": (json.dumps(CONFIG | {"hidden_act": "relu"}), "no formula for what"),
    "quantized": (json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}}), "is quantized already"),
}


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_cannot_be_read_is_refused_in_one_line(text, message, folder):
    (folder / "base" / "config.json").write_text(text)
    finished = called("fit", "base", cwd=folder)
    assert finished.code == 2
    assert finished.err.startswith("error: MODEL: ")
    assert message in finished.err
    assert finished.err.count("\n") == 1


def test_a_place_without_a_config_is_refused(folder):
    for model in ("./nowhere", str(folder), "other/config.json"):
        finished = called("fit", model, cwd=folder)
        assert finished.code == 2
        assert "MODEL: no config.json at" in finished.err


def test_a_model_of_the_hub_that_cannot_be_reached_is_said_so(folder):
    finished = command("fit", "someone/else", cwd=folder, HF_HUB_OFFLINE="1")
    assert finished.code == Unreachable.exit_code
    assert finished.err.startswith("error: MODEL: cannot reach")
    assert "base-model" not in finished.err


def sentence_of(finished) -> str:
    """What the output begins with, up to its full stop, on one line."""
    return " ".join(finished.out.split("\n" + "base: ")[0].split())


def test_the_output_begins_with_the_answer_in_one_sentence(folder):
    points = called("fit", "base", "--gpu", "T4", "--json", cwd=folder).json["points"]
    most = {"16bit": 0, "nf4": 0}
    for point in points:
        if point["max_length_tokens"] == 512:
            most[point["precision"]] = max(most[point["precision"]], point["largest_batch"])
    how = "(lean loop, blocks run again)"
    assert sentence_of(called("fit", "base", "--gpu", "T4", cwd=folder)) == (
        f"Fits one T4: at 16 bits up to {most['16bit']} rows of 512 tokens {how}; at 4 bits up to {most['nf4']} rows "
        f"of 512 tokens {how}; 4 bits begin to pay at any row length (lean loop, blocks kept)."
    )
    assert "\n\n" not in sentence_of(called("fit", "base", cwd=folder))


def test_the_answer_says_what_does_not_fit_and_what_a_smaller_batch_would(folder):
    point = ("fit", "base", *POINT)
    one = called("fit", "base", "--precision", "nf4", "--loop", "standard", *POINT[4:], "--json", cwd=folder).json
    peak = one["peak_mib"]
    smaller = called(*point, "--memory", f"{peak - 1:.0f}MiB", cwd=folder)
    assert sentence_of(smaller) == (
        f"Does not fit {peak - 1:.0f}MiB in batches of 2: at 4 bits up to 1 rows of 512 tokens (standard loop, blocks "
        "kept)."
    )
    nothing = called(*point, "--memory", "100MiB", cwd=folder)
    needed = f"{peak / 1024:.1f} GiB for 2"
    assert sentence_of(nothing) == f"Does not fit 100MiB in batches of 2: at 4 bits not one row ({needed})."
    assert sentence_of(called(*point, cwd=folder)) == (
        f"2 x 512 tokens need: at 4 bits {peak / 1024:.1f} GiB (standard loop, blocks kept)."
    )


def test_the_answer_says_up_to_which_rows_4_bits_pay_in_a_stock_script(folder):
    flags = ("fit", "base", "--loop", "standard")
    (kept, _) = called(*flags, "--json", cwd=folder).json["four_bits"]
    assert sentence_of(called(*flags, cwd=folder)).endswith(
        f"4 bits begin to pay up to {kept['longest_row_tokens']} tokens a row (standard loop, blocks kept)."
        if kept["longest_row_tokens"]
        else "4 bits begin to pay at no row length (standard loop, blocks kept)."
    )
