"""Connecting to Ray: a private one (see private_ray.py), or a running cluster; and how many trials it takes at once."""

import importlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import private_ray
from orchestrator.security import ray_guard
from trainables.values.errors import ConfigError, Unreachable, did_you_mean

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings

PROBE_SECONDS = 4.0
HTTP2_SETTINGS = b"\x04"
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + HTTP2_SETTINGS + b"\0\0\0\0\0"
"""With it a client begins (RFC 9113, section 3.4); Ray, as any gRPC server, answers at once with its own settings."""
PACKAGES = tuple(str(Path(__file__).parents[2] / name) for name in ("trainables", "search_spaces", "orchestrator"))
"""Ours: Ray ships them to every node of a cluster, where they go before what may be installed there."""
SLOTS_SECONDS = 2.0
"""How long a count of slots stands."""
SILENT_SECONDS = 0.5
"""Without an answer for so long, nothing listens."""


def connect(address: str | None, *, insecure: bool = False) -> None:
    """Start a private Ray on this machine, or join the cluster at `address` and ship our packages to its nodes.

    Args:
        insecure: join a cluster that asks for no token.
    Raises:
        ConfigError: the address is not one a driver can join; the cluster asks for no token, or this process has none
            (see orchestrator.security.ray_guard); or it runs another Python or Ray.
        Unreachable: no cluster answers there, or a private Ray did not start.
    """
    if address is None and private_ray.waited_for():
        return
    private_ray.set_variables()
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    if address is not None:
        probe(address)  # before Ray is imported, which what does not answer need not wait for
    import ray

    if address is None:
        private_ray.start()
        return
    ray_guard.guard_cluster(address, insecure=insecure)
    shipped = {"py_modules": list(PACKAGES), "excludes": ["**/__pycache__"]}
    try:
        ray.init(address=address, runtime_env=shipped, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "ersion mismatch" in reason:
            raise ConfigError(f"ADDRESS: the cluster at {address!r} runs another Python or Ray. {reason}") from None
        raise Unreachable(f"ADDRESS: no Ray cluster answers at {address!r} ({reason[:200]})") from None


def leave() -> None:
    """Leave a cluster, or end the private Ray: nothing of it can hold, or end, this process from now on.

    A process that still belongs to a Ray that dies waits a minute for it, and is ended then.
    """
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def spare_mlflow() -> None:
    """Load Ray's own module for MLflow without MLflow: Tune imports it only to count what callbacks its users have, and
    each start would wait for MLflow, which our driver leaves to a process of its own. Afterwards Ray's module says in
    this process that MLflow is not installed."""
    if {"mlflow", "ray.air.integrations.mlflow"}.isdisjoint(sys.modules):
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # as Python's import system has it: it cannot be imported
        try:
            importlib.import_module("ray.air.integrations.mlflow")
        finally:
            del sys.modules["mlflow"]


def probe(address: str) -> None:
    """Ask quickly whether a Ray cluster answers at HOST:PORT; `ray.init` itself would wait for minutes.

    Raises:
        ConfigError: not of the form auto or HOST:PORT.
        Unreachable: nothing listens there, or it is not Ray.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"ADDRESS: {address} is Ray Client's, through which Ray Tune's driver cannot run here; run this command on "
            "the cluster's head node with ADDRESS=auto (ray exec, ray job submit: see orchestrator/cluster/README.md)"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"ADDRESS must be auto or HOST:PORT, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS) as connection:
            connection.sendall(HTTP2_GREETING)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise Unreachable(f"ADDRESS: no cluster answers at {address!r} ({error}); start one, or leave it out") from None
    if os.environ.get("RAY_USE_TLS", "0") == "0" and answer[3:4] != HTTP2_SETTINGS:
        raise Unreachable(f"ADDRESS: what answers at {address!r} is not Ray; give the address that `ray start` printed")


def has_gpu() -> bool:
    """Whether any node of the connected cluster has a GPU, or one that its autoscaler may add."""
    return any(resources.get("GPU", 0) > 0 for resources in [*_there(), *_to_come()])


def _there(without: Collection[str] = ()) -> list[dict[str, float]]:
    """Resources of each node that is up."""
    return [node["Resources"] for node in _alive() if node["NodeID"] not in without]


def _alive() -> list[dict[str, Any]]:
    from orchestrator.workers.versions import alive  # imports Ray

    return alive()


def _to_come() -> list[dict[str, float]]:
    """Resources of each node that the cluster would have at its autoscaler's limit; empty without an autoscaler."""
    from ray._private.state import state

    config = state.get_cluster_config()
    nodes = []
    for group in config.node_group_configs if config else ():
        most = min(group.max_count, 1000)  # a group without a limit has one of the largest integers
        nodes += [dict(group.resources)] * most
    return nodes


def _fits(settings: "SweepSettings", node: Mapping[str, float]) -> int:
    """Trials at once on one node."""
    return min(
        int(node.get(name.upper() if name in ("cpu", "gpu") else name, 0) / share + 1e-9)
        for name, share in settings.resources.items()
    )


def n_slots(settings: "SweepSettings", without: Collection[str] = ()) -> int:
    """Trials that the connected cluster can run at once, at its autoscaler's limit where it has one.

    Args:
        without: ids of nodes where none may run.
    Raises:
        ConfigError: one trial asks for more than any node has, or will have.
    """
    there, to_come = _there(without), _to_come()
    slots = max(sum(_fits(settings, node) for node in nodes) for nodes in (there, to_come))
    if not slots:
        raise ConfigError(_why_none(settings, [*there, *to_come]))
    return slots


def _why_none(settings: "SweepSettings", nodes: Sequence[Mapping[str, float]]) -> str:
    """What a trial asks for that no node has."""
    if settings.device == "cpu":
        return "the cluster has no CPU to run trials on"
    n_gpus, kinds = [0.0], set()
    for node in nodes:
        n_gpus.append(node.get("GPU", 0))
        kinds |= settings.kinds_of(node)
    if settings.gpus_per_trial > max(n_gpus):
        return (
            f"gpus_per_trial is {settings.gpus_per_trial:g}, the largest node of the cluster has "
            f"{max(n_gpus):g} (the whole cluster: {sum(n_gpus):g})"
        )
    if settings.device_kind is not None and settings.device_kind not in kinds:
        return f"device_kind: no GPU {settings.device_kind!r} in the cluster{did_you_mean(settings.device_kind, kinds)}"
    return "no node of the cluster has both the GPU and the CPU that a trial needs"


def silent_nodes(among: Collection[str] | None = None) -> set[str]:
    """Ids of the nodes that Ray takes for alive and where nothing listens any more; it notices late.

    Args:
        among: ids of those that are asked; by default all.
    """
    asked = [node for node in _alive() if among is None or node["NodeID"] in among]
    with ThreadPoolExecutor() as pool:  # hosts that are gone keep each asker waiting
        return set(filter(None, pool.map(_id_if_silent, asked)))


def _id_if_silent(node: Mapping[str, Any]) -> str | None:
    """A node's id where nothing listens at its address."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SILENT_SECONDS).close()
    except OSError:
        return node["NodeID"]
    return None


class Slots:
    """Trials that the cluster can run at once now, counted again every moment: nodes come and go."""

    def __init__(
        self,
        count: Callable[[Collection[str]], int],
        *,
        silent: Callable[[Collection[str] | None], set[str]] = silent_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            count: of this moment, without some nodes; a ConfigError of its own, as all nodes are gone, leaves one task
                waiting for a node.
            silent: nodes, of some or of all, that do not answer.
        """
        self._count = count
        self._find_silent = silent
        self._silent: set[str] = set()
        self._is_suspect = False
        self._clock = clock
        self._counted_at = -math.inf
        self._n = 1

    def one_lost(self) -> None:
        """A worker was lost: perhaps with its node, long before Ray says so."""
        self._is_suspect = True
        self._counted_at = -math.inf

    def __call__(self) -> int:
        if self._clock() - self._counted_at >= SLOTS_SECONDS:
            self._counted_at = self._clock()
            if self._is_suspect or self._silent:
                self._silent = self._find_silent(None if self._is_suspect else self._silent)
                self._is_suspect = False
            try:
                self._n = self._count(self._silent)
            except ConfigError:
                self._n = 1
        return self._n
