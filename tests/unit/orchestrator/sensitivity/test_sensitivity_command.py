"""`qlora-sweep sensitivity` from end to end, and the heat map of its figures."""

import json
import re
from io import StringIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.sensitivity import heat_map as sensitivity_figures
from orchestrator.sensitivity.run import choose, table
from orchestrator.tracking.client import log_run
from orchestrator.tracking.store import EXPERIMENT, store_uri
from tests.support.in_process import called
from tests.support.stores import place_store
from tests.support.sweeps import WORKLOAD
from trainables.comparison.sensitivity import BaseSensitivity, Sensitivity, variants_of
from trainables.models.families.gpt2 import TARGETS
from trainables.values.errors import ConfigError

# --- the heat map


def base_of(kl) -> BaseSensitivity:
    """A base of 3 blocks whose variants have made-up KLs."""
    return BaseSensitivity(
        workload=WORKLOAD,
        environment={"device": "CPU"},
        n_rows=128,
        n_response_tokens=1000,
        unquantized_loss_nats=2.0,
        variants_seconds=1.0,
        variants=tuple(
            Sensitivity(variant=v, n_parameters=1, loss_nats=0.0, kl_nats=kl(v), cosine=1.0)
            for v in variants_of([(block, kind) for block in range(3) for kind in TARGETS])
        ),
    )


def test_each_cell_of_both_heat_maps_is_its_own_variant():
    base = base_of(lambda v: 1e-6 * sum(5 ** (4 * b + TARGETS.index(k)) for b, k in v.quantized))
    expected = [[5.0 ** (4 * b + k) for k in range(4)] for b in range(3)]
    expected = np.array([[*line, sum(line)] for line in expected])
    expected = 1e-6 * np.vstack([expected, expected.sum(axis=0)])
    (image,) = sensitivity_figures.heat_map_png(base).axes[0].get_images()
    np.testing.assert_allclose(image.get_array(), expected)
    (cells,) = sensitivity_figures.heat_map_html(base).data
    np.testing.assert_allclose(10.0 ** np.array(cells.z), expected)
    assert "attn.c_proj of block 2" in cells.text[2][1]


@pytest.mark.parametrize("kl", [0.0, 1e-3])
def test_a_heat_map_of_equal_values_can_be_drawn(kl, tmp_path):
    assert all(path.stat().st_size for path in sensitivity_figures.write(base_of(lambda v: kl), tmp_path))


def test_the_table_fits_a_terminal_of_80_columns():
    console = Console(width=200, file=StringIO())
    console.print(table(base_of(lambda v: 0.123456)))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert sum("0.123456" in line for line in lines) == 1 + len(TARGETS) + 3


# --- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """The command over a base of two blocks with random weights and the demo's rows."""
    folder = tmp_path_factory.mktemp("command")
    base = ("--base-model", f"random:{tiny_folder}", "--data", "demo")
    place_store(folder / "mlflow_runs")
    return folder, called("sensitivity", *base, "--name", "breakdown", "--json", cwd=folder)


def test_without_a_base_and_a_gpu_the_command_reads_the_demo_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level("INFO", "orchestrator"):
        chosen = choose("breakdown", None, None, None, tmp_path)
    assert (chosen.base_model, chosen.data, chosen.device) == ("demo", "demo", "cpu")
    assert "No GPU" in caplog.messages[0]


def test_the_rows_can_be_of_a_split_and_of_other_columns_and_a_wrong_name_is_said_at_once(tmp_path):
    words = {"data_split": "test", "columns": "instruction=question,output=answer"}
    chosen = choose("s", "demo", "a/b", "cpu", tmp_path, **words)
    assert (chosen.data_split, chosen.columns) == tuple(words.values())
    with pytest.raises(ConfigError, match="no field 'instruktion'; did you mean 'instruction'"):
        choose("s", "demo", "a/b", "cpu", tmp_path, columns="instruktion=question")
    words = ("--base-model", "demo", "--data", "demo", "--data-split", "test", "--device", "cpu")
    done = called("sensitivity", *words, cwd=tmp_path)
    assert (done.code, "only a hub id has splits" in done.err) == (2, True)


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
    again = called("sensitivity", "--name", "breakdown", cwd=folder)
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], ["error: --device must be cuda or cpu", "tpu"]),
        (["--device", "cuda"], ["error: --device is 'cuda'", "0 GPUs"]),
        (["--columns", "x"], ["error: --columns must be FIELD=COLUMN"]),
        (["--name", "../x"], ["--name must be", "'../x'"]),
    ],
)
def test_a_bad_setting_is_named_with_exit_code_2(arguments, words, tmp_path):
    refused = called("sensitivity", *arguments, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert all(word in refused.err for word in words), refused.err
