"""How much of a base an adapter covers, before anything is loaded."""

import json
import re
import subprocess
import sys

import pytest
import torch

from tests.support.families import CASES, every_case, tiny, write
from trainables.models import lora
from trainables.models.families import FAMILIES, GROUPS, gpt2, llama, resolve_targets
from trainables.models.layout import Layout, check_quantizable, coverage, known_family, known_layout, layout_in
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

LLAMA = next(case for case in CASES if case.name == "Llama")
BLOCK = {name: (64, 64) for name in llama.TARGETS}
UNEVEN = Layout(family=llama.FAMILY, blocks=(BLOCK, {name: BLOCK[name] for name in llama.TARGETS[4:]}))


@every_case
@pytest.mark.parametrize("group", GROUPS)
def test_coverage_is_what_peft_adapts(case, group, tmp_path):
    case_folder = write(case, tmp_path / "base")
    targets = resolve_targets([group], case.family)
    found = coverage(layout_in(case_folder), targets)
    base = tiny(case)
    all_weights = sum(
        m.weight.numel() for block in case.family.blocks_of(base) for m in case.family.modules_in(block).values()
    )
    config = TrialConfig(precision="16bit", rank=2, alpha=2, targets=targets)
    model = lora.attach(base, config, base_name="tiny")
    adapted = {name.split(".lora_")[0] for name in lora.matrices_of(model)}
    n_adapted = sum(model.get_submodule(name).get_base_layer().weight.numel() for name in adapted)
    assert found.share == pytest.approx(n_adapted / all_weights)
    assert (found.targets, found.missed) == (targets, ())
    assert len(adapted) == 2 * len(targets) == sum(found.n_blocks_with.values())


IMPOSSIBLE = {
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads in .* is 0; it must be a whole number from 1"),
    "a width in words": ({"hidden_size": "x"}, "hidden_size in .* is 'x'"),
    "a negative width": ({"intermediate_size": -5}, "intermediate_size in .* is -5"),
    "two and a half blocks": ({"num_hidden_layers": 2.5}, "num_hidden_layers in .* is 2.5"),
    "a billion blocks": ({"num_hidden_layers": 10**9}, "num_hidden_layers in .* is 1000000000; .* to 10,000"),
    "a vocabulary that is true": ({"vocab_size": True}, "vocab_size in .* is True"),
    "3 key heads for 4": ({"num_key_value_heads": 3}, "4 heads cannot share 3 key heads evenly"),
    "a width of no whole heads": ({"hidden_size": 66, "head_dim": None}, "hidden_size of 66 is no multiple of 4 heads"),
    "a list of widths": ({"intermediate_size": [128, 64]}, "has a size that cannot be"),
}
WITHOUT_PYTORCH = """
import sys, pathlib
from trainables.models.layout import layout_in
from trainables.values.errors import ConfigError
for folder in sys.argv[1:]:
    try:
        print("let in:", layout_in(pathlib.Path(folder)))
    except ConfigError as error:
        print(error)
print("torch" in sys.modules)
"""


def test_sizes_that_no_model_is_built_from_are_refused_by_name_before_pytorch_is_imported(tmp_path):
    values = json.loads((write(LLAMA, tmp_path / "base") / "config.json").read_text())
    folders = []
    for name, (changes, _) in IMPOSSIBLE.items():
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "config.json").write_text(json.dumps(values | changes))
    run = [sys.executable, "-c", WITHOUT_PYTORCH, *map(str, folders)]
    *lines, imported = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert imported == "False"
    for line, (_, said) in zip(lines, IMPOSSIBLE.values(), strict=True):
        assert re.match(f"BASE_MODEL: .*{said}", line), line


def test_what_transformers_cannot_build_is_refused_with_its_reason(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "num_attention_heads": 7}))
    with pytest.raises(ConfigError, match=r"BASE_MODEL: transformers builds no 'gpt_neox' from .*config.json': \w"):
        layout_in(tmp_path)


def test_experts_that_transformers_has_by_default_are_found_too(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "olmoe", "num_hidden_layers": 1}')
    with pytest.raises(ConfigError, match="mixture of experts"):
        layout_in(tmp_path)


def test_the_line_says_which_modules_how_many_blocks_and_what_share():
    assert str(coverage(UNEVEN, ["gate_proj", "down_proj"])) == (
        "gate_proj down_proj in 2 of 2 blocks, 40.0 % of their linear weights"
    )
    line = str(coverage(UNEVEN, ["q_proj", "down_proj"], allow_partial=True))
    assert line == "q_proj down_proj in 1 of 2 blocks (q_proj in 1), 30.0 % of their linear weights"


def test_a_target_that_misses_blocks_is_refused_unless_that_is_allowed():
    with pytest.raises(ConfigError, match=r"targets: 'q_proj' is in 1 of 2 blocks; .*--allow-partial-targets"):
        coverage(UNEVEN, ["q_proj"])
    assert coverage(UNEVEN, ["q_proj"], allow_partial=True).missed == ("q_proj",)
    for allow_partial in (True, False):
        with pytest.raises(ConfigError, match="targets: 'k_pro' is in 0 of 2 blocks"):
            coverage(UNEVEN, ["k_pro"], allow_partial=allow_partial)


def test_nf4_is_refused_where_inputs_are_no_multiple_of_64_with_the_module(tmp_path):
    folder = write(LLAMA, tmp_path / "base")
    values = json.loads((folder / "config.json").read_text())
    check_quantizable(layout_in(folder))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps(values | {"intermediate_size": 100}))
    with pytest.raises(ConfigError, match=re.escape("down_proj (100 x 64) has 100 inputs, no multiple of 64")):
        check_quantizable(layout_in(tmp_path / "odd"))


def test_a_base_is_known_by_its_name_or_its_folder_and_else_only_by_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    medium = known_layout("openai-community/gpt2-medium")
    assert (medium.family, len(medium.blocks)) == (gpt2.FAMILY, 24)
    assert str(coverage(medium, ["attn.c_attn"])) == "attn.c_attn in 24 of 24 blocks, 25.0 % of their linear weights"
    assert known_family(str(write(LLAMA, tmp_path / "gpt2-medium"))) is llama.FAMILY
    assert known_family("demo") is gpt2.FAMILY
    assert known_layout("nobody/has-this") is None
    assert known_family("nobody/has-this") is None


# --- groups and names


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_groups_of_every_family_are_its_targets_in_order_the_smaller_within_the_larger(family):
    qkv, attention, mlp, every = (resolve_targets([group], family) for group in GROUPS)
    assert every == family.targets == (*attention, *mlp)
    assert attention[: len(qkv)] == qkv
    assert len(attention) == len(qkv) + 1
    assert resolve_targets(["mlp", *reversed(qkv)], family) == (*qkv, *mlp)


@pytest.mark.parametrize(
    ("names", "family", "said"),
    [
        (
            ["attn.c_attn"],
            llama.FAMILY,
            "is a module of GPT-2, and the base is of Llama; say 'qkv', which is q_proj",
        ),
        (["mlp.c_proj"], llama.FAMILY, "say 'mlp', which is gate_proj up_proj down_proj here"),
        (["o_proj"], gpt2.FAMILY, "say 'attention', which is attn.c_attn attn.c_proj here"),
        (["q_pro"], llama.FAMILY, "Llama has no module 'q_pro'; did you mean 'q_proj'?"),
        (["all-liner"], gpt2.FAMILY, "did you mean 'all-linear'?"),
        (["c_proj"], gpt2.FAMILY, "'c_proj' names several modules of GPT-2; did you mean 'attn.c_proj'?"),
    ],
)
def test_a_target_of_another_family_or_of_none_is_refused_with_the_nearest(names, family, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        resolve_targets(names, family)


@torch.no_grad()
def test_sizes_are_those_of_the_loaded_modules():
    for case in CASES:
        base = tiny(case)
        block = case.family.blocks_of(base)[0]
        shape = case.family.shape_of(base.config.to_dict())
        for name, module in case.family.modules_in(block).items():
            outputs = module(torch.zeros(1, module.weight.shape[0 if case.family.is_transposed else 1])).shape[-1]
            assert shape is None or shape.modules[name][1] == outputs
