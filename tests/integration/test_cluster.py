"""A sweep on a cluster of several nodes: real Ray, nodes of this machine; GPUs are resources that Ray is told of."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from orchestrator.cluster import nodes, ray_cluster
from orchestrator.driver import plan, sweep
from orchestrator.driver.retries import BACK_OFF_SECONDS, Retries
from orchestrator.ledger import Ledger
from orchestrator.workers import faults, node_inputs, versions, warm
from tests.support.clusters import Sleeper, add_node, joined_cluster
from tests.support.sweeps import command, environment, make, space
from trainables import demo
from trainables.values.errors import ConfigError, Unreachable
from trainables.values.workload import Workload

SIXTEEN = {"rank": {"values": [1, 2, 4, 8]}, "precision": {"values": ["16bit"]}}


@pytest.fixture(scope="module")
def joined():
    """A cluster that the driver has joined: a head that runs no trials, and a node of 2 CPUs."""
    with joined_cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def with_gpus(joined):
    """The same, later, with a node that has a T4 and one that has two A100."""
    add_node(joined, num_cpus=1, num_gpus=1, resources={"accelerator_type:T4": 1})
    add_node(joined, num_cpus=4, num_gpus=2, resources={"accelerator_type:A100": 1})
    return joined


def on_gpus(**values):
    return make(device="cuda", **values)


def test_a_cluster_without_a_gpu_is_named_unless_the_cpu_is_asked_for(joined):
    chosen = dict.fromkeys(("space", "trials", "base_model", "data"))
    with pytest.raises(ConfigError, match="has no GPU; to run on its CPUs say --device cpu"):
        plan.choose("a", None, chosen, {"address": joined.address, "insecure": True})
    assert plan.choose("a", "cpu", chosen, {"address": joined.address, "insecure": True}).device == "cpu"


def test_a_cluster_of_another_python_or_ray_is_named(joined, tmp_path):
    whole = _internal_kv_get("CLUSTER_METADATA", namespace="cluster")
    other = json.loads(whole) | {"ray_version": "2.0.1", "python_version": "3.9.0"}
    _internal_kv_put("CLUSTER_METADATA", json.dumps(other), overwrite=True, namespace="cluster")
    try:
        finished = command("run", "--device", "cpu", "--insecure", "--address", joined.address, cwd=tmp_path)
    finally:
        _internal_kv_put("CLUSTER_METADATA", whole, overwrite=True, namespace="cluster")
    assert finished.code == 2, finished.err
    assert all(word in finished.err for word in ("Python", "2.0.1", "3.9.0")), finished.err
    assert "Traceback" not in finished.err


@ray.remote(num_cpus=1)
def shipped() -> list[str]:
    """Packages on a worker's path that Ray brought; the path also holds the driver's, as here is its machine."""
    brought = [Path(entry) for entry in sys.path if "py_modules_files" in entry]
    return sorted(path.name for folder in brought for path in folder.iterdir() if (path / "__init__.py").is_file())


def test_our_packages_are_on_the_path_of_workers_because_ray_shipped_them(joined):
    assert ray.get(shipped.remote()) == ["orchestrator", "search_spaces", "trainables"]


def test_nodes_with_the_drivers_versions_pass(joined):
    nodes.check_versions()


def test_a_node_with_another_torch_is_named_with_both_versions(joined, tmp_path):
    for package in ("torch", "ray"):
        (tmp_path / f"{package}-1.2.3.dist-info").mkdir()
        (tmp_path / f"{package}-1.2.3.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 1.2.3\n")
    odd = add_node(joined, num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        with pytest.raises(ConfigError) as error:
            nodes.check_versions()
    finally:
        joined.remove_node(odd)
    said = str(error.value)
    assert odd.node_id[:8] in said
    assert "has torch 1.2.3, the driver has 2." in said
    assert "has ray 1.2.3, the driver has 2." in said
    assert said.count("has torch") == 1, "the other nodes are not named"


def test_every_difference_is_named_and_builds_of_one_version_are_none():
    here = {"python": "3.11.7", "torch": "2.13.0+cpu", "ray": "2.60.0"}
    there = {"a": here | {"torch": "2.13.0+cu130"}, "b": {"python": "3.12.1", "torch": "absent", "ray": "2.59.0"}}
    assert versions.differences(here, there) == [
        "node b has python 3.12.1, the driver has 3.11.7",
        "node b has no torch, the driver has 2.13.0",
        "node b has ray 2.59.0, the driver has 2.60.0",
    ]


@pytest.mark.parametrize(
    ("values", "n_expected"),
    [
        ({}, 3),
        ({"gpus_per_trial": 0.5}, 5),  # on the T4's node its one CPU is the limit
        ({"gpus_per_trial": 2.0}, 1),
        ({"device_kind": "T4"}, 1),
        ({"device_kind": "A100"}, 2),
        ({"device_kind": "A100", "gpus_per_trial": 0.5}, 4),
    ],
)
def test_slots_are_counted_by_share_and_kind_of_gpu(with_gpus, values, n_expected):
    assert ray_cluster.n_slots(on_gpus(**values)) == n_expected


def test_a_kind_of_gpu_that_no_node_has_is_named_with_those_there_are(with_gpus):
    with pytest.raises(ConfigError, match=r"device_kind: no GPU 'A10'.*did you mean 'A100'.*T4"):
        ray_cluster.n_slots(on_gpus(device_kind="A10"))


@pytest.mark.parametrize(("values", "n_nodes"), [({}, 2), ({"device_kind": "T4"}, 1), ({"gpus_per_trial": 2.0}, 1)])
def test_each_node_with_a_gpu_that_a_trial_may_have_is_asked_for_it_once(with_gpus, values, n_nodes):
    @ray.remote(num_cpus=0, max_calls=1)
    def where() -> str:
        return ray.get_runtime_context().get_node_id()

    found = nodes.gpus(on_gpus(**values).resources, where)
    assert len(found) == len(set(found)) == n_nodes


def test_tasks_pinned_to_a_kind_run_on_its_nodes_alone(with_gpus):
    resources = on_gpus(device_kind="T4").resources
    rest = {name: share for name, share in resources.items() if name not in ("cpu", "gpu")}

    @ray.remote(num_cpus=resources["cpu"], num_gpus=resources["gpu"], resources=rest)
    def node() -> str:
        return ray.get_runtime_context().get_node_id()

    (t4,) = [n["NodeID"] for n in versions.alive() if "accelerator_type:T4" in n["Resources"]]
    assert {ray.get(node.remote()) for _ in range(3)} == {t4}


def test_a_count_of_slots_follows_nodes_that_come_and_go_and_never_falls_to_none():
    counts, now = iter([2, 5, None]), [0.0]

    def count(without: Collection[str]) -> int:
        found = next(counts)
        if found is None:
            raise ConfigError("the cluster has no CPU to run trials on")
        return found

    slots = ray_cluster.Slots(count, clock=lambda: now[0])
    seen = []
    for moment in (0.0, 1.0, 6.0, 7.0, 20.0):
        now[0] = moment
        seen.append(slots())
    assert seen == [2, 2, 5, 5, 1]


def test_a_node_that_answers_again_is_counted_again():
    now, silent = [0.0], {"a"}
    slots = ray_cluster.Slots(
        lambda without: 4 - len(without), silent=lambda among: silent & (among or {"a"}), clock=lambda: now[0]
    )
    slots.one_lost()
    assert slots() == 3
    silent.clear()
    now[0] = ray_cluster.SLOTS_SECONDS
    assert slots() == 4


def test_the_base_and_the_tokens_reach_a_node_once_and_whole(joined, tmp_path):
    folders = {}
    for name in ("base", "tokens"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "large.bin").write_bytes(b"12345678" * (node_inputs.CHUNK_BYTES // 8) + b"tail")
        (tmp_path / name / "config.json").write_text(name)
        folders[name] = str(tmp_path / name)
    workload = Workload(
        base_model="x",
        base_folder=folders["base"],
        base_fingerprint="f" * 64,
        weights="pretrained",
        data="x",
        data_folder=folders["tokens"],
        data_digest="d" * 64,
        compute_dtype="float32",
    )
    served = node_inputs.serve(workload)

    @ray.remote(num_cpus=1)
    def bring() -> tuple[str, bytes, float]:
        folder = Path(node_inputs.here(workload, served, tmp_path / "node").base_folder)
        large = folder / "deep" / "large.bin"
        return str(folder), large.read_bytes(), large.stat().st_mtime_ns

    (first, content, written), *again = ray.get([bring.remote() for _ in range(3)])
    assert Path(first).parent == tmp_path / "node"
    assert content == (tmp_path / "base" / "deep" / "large.bin").read_bytes()
    assert {(folder, when) for folder, _, when in again} == {(first, written)}, "read over once, not once a worker"
    assert sorted(p.name for p in (tmp_path / "node").iterdir() if not p.name.endswith(".lock")) == [
        f"base-{'f' * 16}-{'d' * 8}",
        f"tokens-{'d' * 16}",
    ]
    assert node_inputs.here(workload, served, tmp_path / "driver") == workload, "the driver's node has them already"


def test_storage_that_a_node_cannot_write_or_that_is_not_the_drivers_is_named(joined, tmp_path):
    nodes.check_storage(str(tmp_path))
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage: .*cannot be written"):
        nodes.check_storage(str(tmp_path / "file" / "below"))


def test_a_sweep_over_several_nodes_loads_what_was_brought_there_and_keeps_adapters_in_storage(joined, tmp_path):
    asked = make(
        space(parameters=SIXTEEN, method="grid"),
        address=joined.address,
        insecure=True,
        storage=(tmp_path / "storage").as_uri(),
        reuse=False,
    )
    result = sweep.run(asked, tmp_path / "mlflow_runs", resume=False, started=lambda *_: None, trainable=Sleeper)
    states = [trial.state for trial in result.trials]
    assert states == ["completed"] * 4, [trial.reason for trial in result.trials]
    ledger = Ledger(tmp_path / "mlflow_runs" / "sweeps" / "t" / "ledger.db", read_only=True)
    driver_folder = ledger.workload().base_folder
    ledger.close()
    own = ray.get_runtime_context().get_node_id()
    for trial in result.trials:
        on_the_driver = trial.environment["node"] == own
        assert (trial.environment["base_folder"] == driver_folder) == on_the_driver
        assert trial.cost.device == "CPU"
    assert any(trial.environment["node"] != own for trial in result.trials)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_not_a_cluster_is_unreachable_at_once(answer):
    """Nothing listens; something listens and says nothing; something that is not Ray answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)
                time.sleep(20 * ray_cluster.PROBE_SECONDS)

        if answer is None:
            server.close()
        else:
            threading.Thread(target=reply, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=address):
            ray_cluster.probe(address)
        assert time.monotonic() - begun < 10 * ray_cluster.PROBE_SECONDS


def test_a_cluster_that_is_not_there_is_said_before_anything_is_fetched(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    finished = command("run", "--device", "cuda", "--address", "127.0.0.1:1", cwd=tmp_path, **nowhere)
    assert finished.code == 5, finished.err
    assert "127.0.0.1:1" in finished.err
    assert "BASE_MODEL" not in finished.err
    assert "Traceback" not in finished.err


@pytest.mark.parametrize(("base", "cached"), [("some/base", ()), ("some/base", ("config.json",)), ("demo", ())])
def test_without_a_hub_each_of_base_and_rows_that_is_not_here_is_said_at_once(base, cached, tmp_path):
    repo = tmp_path / "hf" / "hub" / "models--some--base"
    for name in cached:  # as `fit` leaves it, whose cache has no weights
        file = repo / "snapshots" / ("0" * 40) / name
        file.parent.mkdir(parents=True)
        file.write_bytes((demo.FOLDER / name).read_bytes())
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    finished = command("run", "--base-model", base, "--data", "some/rows", cwd=tmp_path, **nowhere)
    assert finished.code == 5, finished.err
    assert "the dataset 'some/rows'" in finished.err
    assert ("the base 'some/base'" in finished.err) == ("--base-model demo" in finished.err) == (base == "some/base")


COUNTS = """
import sys
from orchestrator.cluster import ray_cluster
ray_cluster.spare_mlflow()
from ray.air._internal.usage import _count_callbacks
from ray.tune import Callback
_count_callbacks([Callback()])
before = "mlflow" in sys.modules
import mlflow
print(before, mlflow.__name__)
"""


def test_the_driver_imports_no_mlflow_for_rays_statistics_and_can_import_it_afterwards():
    program = [sys.executable, "-c", COUNTS]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "mlflow"], done.stderr


def test_ray_clients_address_is_refused_with_what_to_do_instead():
    with pytest.raises(ConfigError, match="head node with ADDRESS=auto"):
        ray_cluster.probe("ray://127.0.0.1:10001")


def test_a_node_that_does_not_answer_is_named(joined):
    @ray.remote(num_cpus=0)
    def sleeps() -> None:
        time.sleep(60)

    with pytest.raises(Unreachable, match=joined.head_node.node_id[:8]):
        nodes.ask_all(sleeps, within_seconds=0.5)


# --- nodes that join while a sweep runs


def test_a_worker_of_other_versions_gives_its_task_back_as_a_fault_of_its_node(joined):
    @ray.remote(num_cpus=1)
    class Worker:
        def __init__(self) -> None:
            versions.refuse_here({"torch": "1.2.3"})

        def __ray_ready__(self) -> None:
            pass

    with pytest.raises(RayActorError) as error:
        ray.get(Worker.remote().__ray_ready__.remote())
    fault = faults.fault_of(error.value)
    assert (fault.kind, fault.is_own) == ("incompatible node", False)
    assert fault.text.startswith("its node was unfit: node ")
    assert fault.text.endswith(", the driver has 1.2.3")


def test_a_task_that_a_node_was_unfit_for_is_tried_again_however_often():
    now = [0.0]
    retries = Retries(lambda: now[0])
    for _ in range(5):
        assert retries.again(("train", "k"), faults.TaskFault(kind="incompatible node", text=""))
        assert not retries.is_due(("train", "k"))
        now[0] += BACK_OFF_SECONDS[0]
        assert retries.is_due(("train", "k"))
    assert retries.n_lost(("train", "k")) == 0


def test_what_a_worker_needs_is_never_given_nor_counted_on_a_node_that_is_avoided(with_gpus):
    from ray.util import placement_group_table, remove_placement_group

    asked = make()
    trained_on = [node["NodeID"] for node in versions.alive() if node["Resources"].get("CPU")]
    assert len(trained_on) == 3
    for alone in trained_on:
        avoided = [node for node in trained_on if node != alone]
        worker = warm.Workers(asked.resources, avoided).take("t")
        group = warm.resources_of({"worker": worker}).to_placement_group()
        ray.get(group.ready())
        assert set(placement_group_table(group)["bundles_to_node_id"].values()) == {alone}
        remove_placement_group(group)
        (cpus,) = [node["Resources"]["CPU"] for node in versions.alive() if node["NodeID"] == alone]
        assert ray_cluster.n_slots(asked, avoided) == cpus
