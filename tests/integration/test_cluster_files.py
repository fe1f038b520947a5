"""The files in orchestrator/cluster: each against its tool's own schema or parser, and against this project."""

import argparse
import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from dockerfile_parse import DockerfileParser

from orchestrator.cli.group import load
from tests.support.sweeps import REPO

FOLDER = REPO / "orchestrator" / "cluster"
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
KUBERNETES = "1.33"
TOKEN = "~/.ray/auth_token"


def flags_of(command: str) -> set[str]:
    """Long options of one of our commands."""
    return {option for parameter in load(command).params for option in parameter.opts if option.startswith("--")}


def check_our_commands(text: str) -> int:
    """Each `qlora-sweep COMMAND --flag` in a text must be one that there is; returns how many there were."""
    found = re.findall(r"qlora-sweep (run|resume|verify|sync|status|best|report)\b([^\n;'|&]*)", text)
    for command, rest in found:
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= flags_of(command), (command, rest)
    return len(found)


# --- ray up


@pytest.fixture(params=["aws", "gcp"])
def ray_up(request) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{request.param}.yaml").read_text())


def test_what_ray_up_is_given_fits_rays_own_schema_with_its_defaults(ray_up):
    jsonschema.validate(ray_up, RAY_SCHEMA)
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(ray_up))
    assert ray_up.keys() <= RAY_SCHEMA["properties"].keys()


def test_a_key_that_ray_does_not_know_would_be_found(ray_up):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ray_up | {"idle_timeout": 5}, RAY_SCHEMA)


def test_workers_are_spot_with_one_gpu_each_and_come_from_none(ray_up):
    head, *workers = [ray_up["available_node_types"][name] for name in (ray_up["head_node_type"], "t4")]
    assert head["resources"] == {"CPU": 0}, "trials keep off the head"
    for worker in workers:
        assert worker["min_workers"] == 0
        assert worker["max_workers"] <= ray_up["max_workers"]
        assert worker["resources"]["GPU"] == 1
        assert "spot" in json.dumps(worker["node_config"]).lower()
        assert "spot" not in json.dumps(head["node_config"]).lower(), "the ledger lies on the head"


def test_ray_up_asks_for_a_token_on_every_node(ray_up):
    assert ray_up["file_mounts"] == {TOKEN: TOKEN}
    assert f"chmod 600 {TOKEN}" in ray_up["setup_commands"]
    assert "--env RAY_AUTH_MODE=token" in ray_up["docker"]["run_options"]
    assert any("--dashboard-host=127.0.0.1" in line for line in ray_up["head_start_ray_commands"])


# --- KubeRay

RAY_JOB = {
    *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"),
    *("activeDeadlineSeconds", "clusterSelector", "deletionStrategy", "entrypointNumCpus", "entrypointNumGpus"),
    *("entrypointResources", "jobId", "managedBy", "metadata", "runtimeEnvYAML", "submissionMode"),
    *("submitterConfig", "submitterPodTemplate", "suspend"),
}
RAY_CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"),
    *("workerGroupSpecs", "gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "suspend"),
}
HEAD_GROUP = {"rayStartParams", "template", "serviceType", "headService", "enableIngress", "resources", "labels"}
WORKER_GROUP = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"),
    *("idleTimeoutSeconds", "scaleStrategy", "suspend", "resources", "labels"),
}
AUTOSCALER = {
    *("idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy", "env", "envFrom"),
    *("securityContext", "version", "volumeMounts"),
}
"""Fields of ray.io/v1 as KubeRay's API reference has them (https://docs.ray.io, KubeRay CRD API reference)."""


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())}


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]} | {name: group["template"] for name, group in groups.items()}


def test_volume_and_pods_fit_the_schema_of_kubernetes(objects):
    kubernetes_validate.validate(objects["PersistentVolumeClaim"], KUBERNETES, strict=True)
    for name, template in templates(objects["RayJob"]).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        misspelt = pod | {"spec": pod["spec"] | {"toleration": []}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(misspelt, KUBERNETES, strict=True)


def test_the_ray_job_has_no_field_that_kuberay_does_not_know(objects):
    job = objects["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"].keys() <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster.keys() <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"].keys() <= AUTOSCALER
    assert cluster["headGroupSpec"].keys() <= HEAD_GROUP
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= WORKER_GROUP
    starts = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in starts for value in group["rayStartParams"].values())
    assert cluster["rayVersion"] == version("ray")


def test_pods_of_the_ray_job_have_gpu_limits_a_volume_for_state_and_scale_from_none(objects):
    job = objects["RayJob"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    for name, template in templates(job).items():
        (container,) = template["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert limits.get("nvidia.com/gpu") == (None if name == "head" else 1)
    head = templates(job)["head"]["spec"]
    (mount,), (volume,) = head["containers"][0]["volumeMounts"], head["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert f"cd {mount['mountPath']}" in job["spec"]["entrypoint"]


def test_what_the_ray_job_runs_is_a_command_that_goes_on_with_what_there_is(objects, tmp_path):
    entrypoint = objects["RayJob"]["spec"]["entrypoint"]
    assert check_our_commands(entrypoint) == 2
    (tmp_path / "qlora-sweep").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "qlora-sweep").chmod(0o755)
    script = entrypoint.replace("/runs", str(tmp_path))
    run = {"shell": True, "text": True, "capture_output": True, "check": True}
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(script, env=env, **run).stdout.startswith("run --name team --device cuda --address auto")
    (tmp_path / "mlflow_runs" / "sweeps" / "team").mkdir(parents=True)
    (tmp_path / "mlflow_runs" / "sweeps" / "team" / "ledger.db").touch()
    assert subprocess.run(script, env=env, **run).stdout == "resume team\n"


# --- Slurm

SBATCH = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "signal", "output"),
    *("open-mode", "partition", "account", "error", "exclusive", "constraint", "gres", "array"),
}
"""Long options of sbatch that take a value (https://slurm.schedmd.com/sbatch.html)."""
SBATCH_FLAGS = {"requeue", "no-requeue"}
STUBS = {
    "scontrol": "echo first; echo second",
    "getent": "echo '10.0.0.7 STREAM first'",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'stat -c "mode %a" "$RAY_AUTH_TOKEN_PATH"; wc -c <"$RAY_AUTH_TOKEN_PATH"; echo "$RAY_AUTH_MODE $@"',
}


def test_the_slurm_script_is_bash_with_options_that_sbatch_has():
    path = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command, "sbatch stops there"
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in SBATCH:
        parser.add_argument(f"--{name}", type=int if name in ("nodes", "cpus-per-task", "ntasks-per-node") else str)
    for name in SBATCH_FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    given, unknown = parser.parse_known_args(options)
    assert not unknown
    assert given.ntasks_per_node == 1, "one Ray a node"
    assert re.fullmatch(r"(\d+-)?\d{1,2}:\d{2}:\d{2}", given.time)
    assert check_our_commands(path.read_text()) == 2


def test_the_slurm_script_starts_the_sweep_on_all_its_nodes_under_a_token_of_its_own(tmp_path):
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    slurm |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "1", "NAME": "a"}
    env = os.environ | slurm | {"PATH": f"{stubs}:{os.environ['PATH']}"}
    run = {"env": env, "text": True, "capture_output": True, "check": True, "timeout": 30}
    mode, n_bytes, command = subprocess.run(["bash", str(FOLDER / "slurm.sh")], **run).stdout.splitlines()
    assert mode == "mode 600"
    assert int(n_bytes) >= 40
    start, _, sweep = command.partition(" -- ")
    assert start == "token symmetric-run --address 10.0.0.7:6379 --min-nodes 2 --num-cpus=8 --num-gpus=1"
    assert sweep == "env RAY_ADDRESS=10.0.0.7:6379 qlora-sweep run --name a --device cuda --address auto"
    assert not list(tmp_path.glob(".ray-token*")), "the token goes with the job"
    (tmp_path / "mlflow_runs" / "sweeps" / "a").mkdir(parents=True)
    (tmp_path / "mlflow_runs" / "sweeps" / "a" / "ledger.db").touch()
    assert subprocess.run(["bash", str(FOLDER / "slurm.sh")], **run).stdout.endswith("qlora-sweep resume a\n")


# --- the image


def test_the_image_has_a_pinned_cuda_base_pinned_versions_and_no_root(tmp_path):
    parser = DockerfileParser(path=str(tmp_path), fileobj=None)
    parser.content = (FOLDER / "Dockerfile").read_text()
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", parser.baseimage)
    found = [(line["instruction"], line["value"]) for line in parser.structure]
    for instruction, value in found:
        if instruction == "COPY":
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            assert all((REPO / source).exists() for source in sources), sources
        if "pip install" in value and instruction == "RUN":
            assert "--constraint constraints.txt" in value
    users = [value for instruction, value in found if instruction == "USER"]
    assert users
    assert "root" not in users
    assert parser.envs["RAY_AUTH_MODE"] == "token"
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[([a-z,]+)\]", parser.content)) <= extras.keys()


def test_every_package_that_the_image_asks_for_is_pinned():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in asked}
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert names <= pinned, names - pinned


# --- the page


def test_every_command_on_the_page_is_one_that_there_is():
    page = (FOLDER / "GUIDE.md").read_text()
    assert check_our_commands(page) >= 4
    named = set(re.findall(r"orchestrator/cluster/([A-Za-z.]+)", page))
    files = {path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix not in (".py", ".md")}
    assert files <= named
    assert all((FOLDER / name).exists() for name in named)
