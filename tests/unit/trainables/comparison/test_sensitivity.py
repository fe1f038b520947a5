"""Quantizing parts of the base: against the 4-bit base, against a plain loop, and the command from end to end."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, OPTConfig

from orchestrator.sensitivity import heat_map as sensitivity_figures
from orchestrator.sensitivity.run import SensitivityResult, SensitivitySettings, choose
from orchestrator.tracking.store import EXPERIMENT, log_run, store_uri
from tests.support.stores import place_store
from tests.support.sweeps import WORKLOAD, command
from trainables import demo
from trainables.comparison.sensitivity import (
    Sensitivity,
    Variant,
    measure,
    modules_of,
    quantized,
    read,
    round_trip,
    variants_of,
)
from trainables.evaluation import held_out
from trainables.models import base_model
from trainables.models.families.gpt2 import TARGETS
from trainables.values.errors import ConfigError


def places(n_blocks: int) -> list[tuple[int, str]]:
    return [(block, kind) for block in range(n_blocks) for kind in TARGETS]


@pytest.fixture(scope="module")
def base(workload):
    return base_model.load(workload, "16bit", "cpu")


@pytest.fixture(scope="module")
def rows(splits):
    return splits["validation"][:20]


@pytest.fixture(scope="module")
def unquantized(base, rows):
    return read(base, rows)


# --- which modules, which variants


def test_modules_come_in_the_order_of_blocks_and_of_targets(base):
    assert list(modules_of(base)) == places(2)


@given(st.integers(1, 48))
def test_variants_are_one_of_each_kind_of_question(n_blocks):
    variants = variants_of(places(n_blocks))
    assert len(variants) == 6 * n_blocks + 10
    sizes = {"none": 0, "module": 1, "block": 4, "kind": n_blocks, "all": 4 * n_blocks}
    sizes |= {"all_but_block": 4 * n_blocks - 4, "all_but_kind": 3 * n_blocks}
    assert all(len(v.quantized) == sizes[v.scope] for v in variants)
    assert len({v.label for v in variants}) == len(variants)


@given(st.integers(1, 12))
def test_a_part_and_all_but_it_share_nothing_and_make_up_everything(n_blocks):
    variants = {(v.scope, v.block, v.kind): v.quantized for v in variants_of(places(n_blocks))}
    for (scope, block, kind), part in variants.items():
        if scope in ("block", "kind"):
            rest = variants[f"all_but_{scope}", block, kind]
            assert not part & rest
            assert part | rest == set(places(n_blocks))


# --- the weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_are_the_weights_that_the_4_bit_base_computes_with(dtype, workload):
    whole, packed = (base_model.load(replace(workload, compute_dtype=dtype), p, "cpu") for p in ("16bit", "nf4"))
    linear = modules_of(packed)
    for place, module in modules_of(whole).items():
        weight = linear[place].weight
        expected = dequantize_4bit(weight.data, weight.quant_state).T
        assert torch.equal(round_trip(module), expected), place


def test_all_quantized_is_the_4_bit_base(base, workload, rows):
    packed = base_model.load(workload, "nf4", "cpu")
    with quantized(modules_of(base), frozenset(places(2))):
        ours = held_out.eval_loss(base, rows)
    assert ours == pytest.approx(held_out.eval_loss(packed, rows), rel=1e-6)
    assert ours != pytest.approx(held_out.eval_loss(base, rows), rel=1e-4)


@pytest.mark.parametrize("fault", [None, RuntimeError])
def test_weights_come_back_bit_for_bit_also_after_an_error(base, fault):
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in base.named_parameters()}

    def use() -> None:
        with quantized(modules_of(base), frozenset(places(2))):
            changed = [name for name, p in base.named_parameters() if not torch.equal(p, before[name][1])]
            assert len(changed) == 8
            if fault:
                raise fault

    if fault:
        with pytest.raises(fault):
            use()
    else:
        use()
    for name, parameter in base.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


# --- what a variant costs


@torch.no_grad()
def plain_cost(base, variant: Variant, rows) -> tuple[float, float, float]:
    """Loss difference, KL and cosine, one row at a time, with a copy whose weights are overwritten."""
    other = copy.deepcopy(base)
    for block, kind in variant.quantized:
        module = other.transformer.h[block].get_submodule(kind)
        module.weight.copy_(round_trip(module))
    losses, kls, cosines = [], [], []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        answer = slice(row.n_prompt_tokens - 1, -1)
        logs, pooled = [], []
        for model in (base, other):
            out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
            logs.append(out.logits[0, answer].double().log_softmax(dim=-1))
            pooled.append(out.hidden_states[-1][0, answer].double().mean(dim=0))
        targets = ids[0, row.n_prompt_tokens :, None]
        losses += (logs[0] - logs[1]).gather(1, targets).flatten().tolist()
        kls += (logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1).tolist()
        cosines.append(float(torch.cosine_similarity(*pooled, dim=0)))
    return float(np.mean(losses)), float(np.mean(kls)), float(np.mean(cosines))


@pytest.mark.parametrize("scope", ["none", "module", "block", "kind", "all_but_block"])
def test_a_variant_costs_what_a_plain_loop_over_a_copied_model_finds(scope, base, rows, unquantized):
    variant = next(v for v in reversed(variants_of(places(2))) if v.scope == scope)
    found = measure(base, variant, rows, unquantized)
    loss, kl, cosine = plain_cost(base, variant, rows)
    assert found.loss_nats == pytest.approx(loss, abs=2e-5)
    assert found.kl_nats == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert found.n_parameters == sum(
        64 * 64 * {"attn.c_attn": 3, "attn.c_proj": 1}.get(k, 4) for _, k in variant.quantized
    )


def test_nothing_quantized_costs_nothing(base, rows, unquantized):
    found = measure(base, variants_of(places(2))[0], rows, unquantized)
    assert (found.n_parameters, found.loss_nats, found.kl_nats) == (0, 0.0, 0.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)


# --- the heat map


def result_of(kl) -> SensitivityResult:
    """A run over 3 blocks whose variants have made-up KLs."""
    return SensitivityResult(
        settings=SensitivitySettings(name="t", base_model="demo", data="demo", device="cpu"),
        workload=WORKLOAD,
        environment={"device": "CPU"},
        n_rows=128,
        n_response_tokens=1000,
        unquantized_loss_nats=2.0,
        variants_seconds=1.0,
        variants=tuple(
            Sensitivity(variant=v, n_parameters=1, loss_nats=0.0, kl_nats=kl(v), cosine=1.0)
            for v in variants_of(places(3))
        ),
    )


def test_each_cell_of_both_heat_maps_is_its_own_variant():
    result = result_of(lambda v: 1e-6 * sum(5 ** (4 * b + TARGETS.index(k)) for b, k in v.quantized))
    expected = [[5.0 ** (4 * b + k) for k in range(4)] for b in range(3)]
    expected = np.array([[*line, sum(line)] for line in expected])
    expected = 1e-6 * np.vstack([expected, expected.sum(axis=0)])
    (image,) = sensitivity_figures.heat_map_png(result).axes[0].get_images()
    np.testing.assert_allclose(image.get_array(), expected)
    (cells,) = sensitivity_figures.heat_map_html(result).data
    np.testing.assert_allclose(10.0 ** np.array(cells.z), expected)
    assert "attn.c_proj of block 2" in cells.text[2][1]


@pytest.mark.parametrize("kl", [0.0, 1e-3])
def test_a_heat_map_of_equal_values_can_be_drawn(kl, tmp_path):
    assert all(path.stat().st_size for path in sensitivity_figures.write(result_of(lambda v: kl), tmp_path))


# --- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """The command over a base of two blocks with random weights and the demo's rows."""
    folder = tmp_path_factory.mktemp("command")
    base = ("--base-model", f"random:{tiny_folder}", "--data", "demo")
    return folder, command("sensitivity", *base, "--name", "breakdown", "--json", cwd=folder)


def test_without_a_base_and_a_gpu_the_command_reads_the_demo_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level("INFO", "orchestrator"):
        chosen = choose("breakdown", None, None, None, tmp_path)
    assert (chosen.base_model, chosen.data, chosen.device) == ("demo", "demo", "cpu")
    assert "No GPU" in caplog.messages[0]


def test_the_command_measures_every_variant_of_its_base(finished):
    _, done = finished
    assert done.code == 0, done.err
    found = done.json
    assert len(found["variants"]) == 6 * 2 + 10
    by_label = {v["label"]: v for v in found["variants"]}
    assert by_label["none"]["kl_nats"] == 0
    assert 0 < by_label["mlp.c_fc of block 1"]["kl_nats"] < by_label["all"]["kl_nats"]
    assert "random weights" in found["caption"]


def test_the_command_leaves_a_table_and_pictures(finished):
    folder, done = finished
    where = folder / "mlflow_runs/sensitivity/breakdown"
    saved = json.loads((where / "sensitivity.json").read_text())
    assert saved["variants"] == done.json["variants"] == pq.read_table(where / "sensitivity.parquet").to_pylist()
    assert len(np.unique(imread(where / "sensitivity.png").reshape(-1, 4), axis=0)) > 100
    page = (where / "sensitivity.html").read_text()
    assert not re.search(r"<script[^>]+src=", page)
    assert "mlp.c_fc of block 1" in page


def test_the_command_leaves_an_mlflow_run(finished):
    folder, done = finished
    client = MlflowClient(tracking_uri=store_uri(folder / "mlflow_runs"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sensitivity'")
    assert run.info.status == "FINISHED"
    assert run.info.run_id in done.json["mlflow_run"]
    history = client.get_metric_history(run.info.run_id, "module/mlp.c_fc/kl_nats")
    expected = [v["kl_nats"] for v in done.json["variants"] if (v["scope"], v["kind"]) == ("module", "mlp.c_fc")]
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == expected
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {f"sensitivity.{ending}" for ending in ("json", "parquet", "png", "html")}


def test_a_name_that_is_taken_is_refused(finished):
    folder, _ = finished
    again = command("sensitivity", "--name", "breakdown", cwd=folder)
    assert (again.code, again.out) == (2, "")
    assert "choose another NAME" in again.err


def test_an_mlflow_that_cannot_be_written_is_said_and_not_fatal(tmp_path, caplog):
    (tmp_path / "mlflow.db").write_text("no database at all, but as long as the header of one")
    assert log_run(tmp_path, name="t", tags={}, params={}, metrics=[], artifacts=[]) is None
    assert caplog.messages[-1].startswith("MLflow was not written")


def test_more_metrics_than_mlflow_takes_at_once_are_all_written(tmp_path):
    metrics = [("kl_nats", float(step), step) for step in range(1001)]
    place_store(tmp_path)
    page = log_run(tmp_path, name="t", tags={}, params={}, metrics=metrics, artifacts=[])
    client = MlflowClient(tracking_uri=store_uri(tmp_path))
    run_id = page.rpartition("/")[2].removesuffix("?workflowType=machine_learning")
    assert len(client.get_metric_history(run_id, "kl_nats")) == 1001


@pytest.fixture(scope="module")
def opt_folder(tmp_path_factory):
    """A tiny OPT: its modules are named otherwise."""
    folder = tmp_path_factory.mktemp("opt")
    shape = OPTConfig(
        hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=1024
    )
    AutoModelForCausalLM.from_config(shape, trust_remote_code=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    return folder


def test_a_base_without_quantizable_modules_is_refused(opt_folder):
    with pytest.raises(ConfigError, match=r"BASE_MODEL: 'opt' is of no family known here"):
        modules_of(AutoModelForCausalLM.from_pretrained(opt_folder, trust_remote_code=False))


def test_the_command_refuses_such_a_base_with_exit_code_2(opt_folder, tmp_path):
    refused = command("sensitivity", "--base-model", str(opt_folder), "--data", "demo", "--json", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, ""), refused.err
    assert "BASE_MODEL: model_type 'opt'" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], ["device", "tpu"]),
        (["--device", "cuda"], ["device", "0 GPUs"]),
        (["--name", "../x"], ["NAME", "'../x'"]),
    ],
)
def test_a_bad_setting_is_named_with_exit_code_2(arguments, words, tmp_path):
    refused = command("sensitivity", *arguments, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert all(word in refused.err for word in words), refused.err
    assert refused.seconds < 5
