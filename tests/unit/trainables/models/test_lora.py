"""The LoRA adapter: equal at both precisions, taken off without a trace, reloaded by peft alone."""

import json
import socket
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.bases import IDS, assert_untouched, logits, state_of
from trainables.capture.capture import attached_matrices
from trainables.models import base_model, lora
from trainables.models.families import gpt2, ordered_targets, resolve_targets
from trainables.models.families.gpt2 import TARGETS
from trainables.training.eager import EagerEngine
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError

PRECISIONS = ("16bit", "nf4")
SHAPES = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 256), "mlp.c_proj": (256, 64)}


def train(model, config: TrialConfig, n_steps: int = 3) -> None:
    engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
    for _ in range(n_steps):
        engine.step(IDS, IDS)


CONFIG, WEIGHTS = lora.FILES


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def files_of(model, config: TrialConfig) -> dict[str, bytes]:
    return lora.to_files(config, lora.matrices_of(model), base_name="tiny")


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture
def attached(cache):
    """Attach adapters that are detached when the test ends."""
    models = []

    def attach(config: TrialConfig, base=None):
        models.append(lora.attach(base or cache.base(config.precision), config, base_name="tiny"))
        return models[-1]

    yield attach
    for model in reversed(models):
        lora.detach(model)


def test_equal_seeds_give_equal_weights_at_both_precisions_and_other_seeds_do_not(attached, small_config):
    config = small_config(targets=TARGETS, seed=3)
    ours = trainable(attached(config))
    baseline = trainable(attached(config.at_other_precision))
    assert ours.keys() == baseline.keys()
    assert all(torch.equal(ours[name], baseline[name]) for name in ours)


def test_another_seed_gives_other_weights(cache, small_config):
    drawn = []
    for seed in (3, 4):
        model = lora.attach(cache.base("16bit"), small_config(seed=seed), base_name="tiny")
        drawn.append(trainable(model))
        lora.detach(model)
    assert all(not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0] if "lora_A" in name)


def test_a_fresh_adapter_changes_no_logit(cache, attached, small_config, precision):
    before = logits(cache.base(precision))
    model = attached(small_config(precision=precision, targets=TARGETS))
    assert torch.equal(logits(model), before)
    assert all(not value.any() for name, value in trainable(model).items() if "lora_B" in name)


@pytest.mark.parametrize("targets", [("attn.c_proj",), ("attn.c_attn", "mlp.c_proj"), TARGETS])
def test_exactly_the_named_modules_get_an_adapter_of_that_rank(attached, small_config, precision, targets):
    weights = trainable(attached(small_config(precision=precision, targets=targets, rank=5)))
    assert {name.split(".h.")[1].split(".lora")[0][2:] for name in weights} == set(targets)
    assert len(weights) == 2 * 2 * len(targets)  # A and B, two layers
    n_values = sum(value.numel() for value in weights.values())
    assert n_values == 2 * sum(5 * sum(SHAPES[target]) for target in targets)
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_an_adapted_module_computes_w_plus_scaling_b_a(attached, small_config, precision, rank_stabilized):
    config = small_config(precision=precision, rank=16, alpha=8, rank_stabilized=rank_stabilized)
    model = attached(config)
    train(model, config)
    module = model.get_submodule("base_model.model.transformer.h.0.attn.c_attn")
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = module.base_layer(x) + (2.0 if rank_stabilized else 0.5) * x @ a.T @ b.T
        model.eval()
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(expected, module.base_layer(x), atol=1e-4)


def test_detach_restores_the_base_bit_for_bit(cache, small_config, precision):
    base = cache.base(precision)
    before = state_of(base)
    config = small_config(precision=precision, targets=TARGETS)
    for _ in range(2):
        model = lora.attach(base, config, base_name="tiny")
        train(model, config)
        assert not torch.equal(logits(model), before["logits"])
        assert lora.detach(model) is base
        assert_untouched(base, before)


def test_the_files_reload_with_peft_alone_to_the_same_logits(workload, attached, small_config, precision, tmp_path):
    config = small_config(precision=precision, targets=TARGETS, rank_stabilized=True)
    model = attached(config)
    train(model, config)
    files = files_of(model, config)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    alone = PeftModel.from_pretrained(base_model.load(workload, precision, "cpu"), tmp_path)
    assert torch.equal(logits(alone), logits(model))


@pytest.mark.parametrize("values", [{}, {"targets": TARGETS, "rank_stabilized": True, "dropout": 0.25, "alpha": 3}])
def test_the_files_are_those_that_peft_itself_writes(attached, small_config, precision, values, tmp_path):
    config = small_config(precision=precision, **values)
    model = attached(config)
    train(model, config)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    files = files_of(model, config)
    assert files[WEIGHTS] == (tmp_path / WEIGHTS).read_bytes()
    theirs = json.loads((tmp_path / CONFIG).read_text())
    theirs["target_modules"].sort()
    assert json.loads(files[CONFIG]) == theirs


def test_a_fresh_adapters_matrices_are_those_of_an_attached_one_and_leave_the_base_bare(
    cache, attached, small_config, precision
):
    config = small_config(precision=precision, targets=TARGETS, seed=3)
    before = state_of(cache.base(precision))
    loose = lora.fresh_matrices(cache.base(precision), config)
    assert_untouched(cache.base(precision), before)
    theirs = trainable(attached(config))
    assert list(loose) == list(theirs)
    assert all(torch.equal(loose[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fresh_matrices_are_rounded_as_an_attached_adapters_where_the_base_computes_in_16_bits(
    cache, small_config, precision, dtype
):
    base = deepcopy(cache.base(precision))
    for module in base.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
    base = base.to(dtype) if precision == "16bit" else base
    config = small_config(precision=precision, targets=TARGETS, seed=3)
    loose = lora.fresh_matrices(base, config)
    theirs = trainable(lora.attach(base, config, base_name="tiny"))
    assert all(torch.equal(loose[name], theirs[name]) for name in theirs)
    assert {matrix.dtype for matrix in loose.values()} == {torch.float32}


def test_blank_matrices_are_zeros_in_the_place_of_a_fresh_adapters(cache, small_config, precision):
    base, config = cache.base(precision), small_config(precision=precision, targets=TARGETS)
    blank, fresh = lora.blank_matrices(base, config), lora.fresh_matrices(base, config)
    assert list(blank) == list(fresh)
    for name, matrix in fresh.items():
        ours = blank[name]
        assert (ours.shape, ours.dtype, ours.device) == (matrix.shape, matrix.dtype, matrix.device)
        assert ours.requires_grad
        assert not ours.any()


def test_an_adapter_to_capture_work_on_has_the_very_matrices_that_it_is_given(cache, small_config, precision):
    base, config = cache.base(precision), small_config(precision=precision, targets=TARGETS, dropout=0.0)
    before = state_of(base)
    model = lora.attach(base, config, base_name="tiny")
    for weight in lora.matrices_of(model).values():
        torch.nn.init.normal_(weight, std=0.1)
    matrices = {name: torch.nn.Parameter(weight.detach()) for name, weight in lora.matrices_of(model).items()}
    tuned = logits(model)
    lora.detach(model)
    with attached_matrices(base, config, matrices, config.scaling) as lent:
        assert all(found is matrices[name] for name, found in lora.matrices_of(lent).items())
        assert not any(parameter.is_meta for parameter in lent.parameters())
        assert torch.equal(logits(lent.eval()), tuned)
    assert_untouched(base, before)


def test_files_attach_again_and_come_off_again(cache, small_config, precision):
    base = cache.base(precision)
    before = state_of(base)
    config = small_config(precision=precision)
    model = lora.attach(base, config, base_name="tiny")
    train(model, config)
    tuned, files = logits(model), files_of(model, config)
    lora.detach(model)
    again = lora.from_files(base, files)
    assert torch.equal(logits(again), tuned)
    lora.detach(again)
    assert_untouched(base, before)


def without_a_weight(content: bytes) -> bytes:
    return save(dict(list(load(content).items())[1:]))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (CONFIG, None, CONFIG),
        (WEIGHTS, None, WEIGHTS),
        (CONFIG, lambda content: content[:50], "Unterminated string"),
        (CONFIG, lambda content: content.replace(b'"r": 4', b'"r": 5'), "size mismatch"),
        (CONFIG, lambda content: content.replace(b'"attn.c_attn"', b'"attn.c_attn", "ln_f"'), "not supported"),
        (WEIGHTS, lambda content: content[:-1], "not fully covered"),
        (WEIGHTS, without_a_weight, "missing adapter keys"),
    ],
)
def test_files_that_cannot_be_attached_leave_the_base_alone(cache, small_config, precision, name, damage, message):
    base = cache.base(precision)
    config = small_config(precision=precision)
    files = lora.to_files(config, lora.fresh_matrices(base, config), base_name="tiny")
    before = state_of(base)
    content = files.pop(name)
    if damage:
        assert damage(content) != content
        files[name] = damage(content)
    with pytest.raises(Exception, match=message):
        lora.from_files(base, files)
    assert_untouched(base, before)


def test_the_files_name_the_base_and_no_hub_is_asked_for_it(attached, small_config, monkeypatch):
    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args) or [])
    model = attached(small_config())
    settings = json.loads(files_of(model, small_config())["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "tiny"
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (4, 8, ["attn.c_attn"])
    assert not asked


def test_the_adapter_is_float32_on_a_bfloat16_base(workload, attached, small_config, precision):
    base = base_model.load(replace(workload, compute_dtype="bfloat16"), precision, "cpu")
    config = small_config(precision=precision)
    model = attached(config, base)
    assert {value.dtype for value in trainable(model).values()} == {torch.float32}
    for weight in lora.matrices_of(model).values():
        torch.nn.init.normal_(weight)  # numbers that bfloat16 has not
    again = lora.from_files(
        base_model.load(replace(workload, compute_dtype="bfloat16"), precision, "cpu"), files_of(model, config)
    )
    found = dict(again.named_parameters())
    for name, weight in trainable(model).items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight)


def test_a_target_that_the_base_does_not_have_is_refused_and_leaves_it_alone(small_config):
    shape = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=16,
    )
    base = LlamaForCausalLM(shape)
    with pytest.raises(ConfigError, match=r"targets: 'attn\.c_attn' matches no module of other"):
        lora.attach(base, small_config(), base_name="other")
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_bare_c_proj_is_refused_since_it_names_two_modules():
    with pytest.raises(ConfigError, match=r"'c_proj' names several modules of GPT-2; did you mean 'attn\.c_proj'"):
        resolve_targets(("c_proj",), gpt2.FAMILY)


def test_equal_sets_of_targets_are_equal_tuples_in_the_familys_order():
    assert ordered_targets(["mlp.c_proj", "attn.c_attn"]) == ordered_targets(("attn.c_attn", "mlp.c_proj"))
    assert ordered_targets(reversed(TARGETS)) == TARGETS


@pytest.mark.parametrize(
    ("base_name", "named"),
    [("org/name@v1", ("org/name", "v1")), ("org/name", ("org/name", None)), ("/models/a@b", ("/models/a@b", None))],
)
def test_an_adapter_names_its_base_and_the_revision_as_peft_reads_them(base_name, named, small_config):
    settings = json.loads(lora.to_files(small_config(), {}, base_name=base_name)["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["revision"]) == named


def test_an_adapter_names_the_commit_that_its_base_s_revision_came_to_where_that_is_known(small_config):
    for base_name, commit, revision in (
        ("org/name@main", "c" * 40, "c" * 40),
        ("org/name", "c" * 40, "c" * 40),
        ("org/name@main", None, "main"),
    ):
        files = lora.to_files(small_config(), {}, base_name=base_name, commit=commit)
        settings = json.loads(files["adapter_config.json"])
        assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/name", revision)
