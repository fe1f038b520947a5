"""Nodes that join a cluster after a sweep began: asked for their versions too, and kept away from where those differ.

Ray offers no way to have a node approved before anything runs on it. So each worker holds its own node's versions
against the driver's before it imports what trials need, and gives its task back where they differ (a fault of the
node, see orchestrator.workers.faults: the task is tried again elsewhere); and the driver, which looks for new nodes
every few seconds, has Ray place no more workers on such a node.
"""

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.cluster import nodes
from orchestrator.workers.versions import PACKAGES, alive, differences, node_name
from trainables.cost.device import versions

logger = logging.getLogger(__name__)


class NodeVersionWatch:
    """Asks each node of the connected cluster once, when it is first seen; never waits for an answer.

    A node where no trial goes is logged once.

    Attributes:
        here: versions of PACKAGES where the driver runs.
        avoided: ids of the nodes where no trial goes, as far as they are known.
    """

    def __init__(self) -> None:
        self.here = versions(PACKAGES)
        self.avoided: list[str] = []
        self._seen: set[str] = set()
        self._asked: dict[ray.ObjectRef, dict[str, Any]] = {}

    def looked(self) -> list[str]:
        """Ask nodes that are new, take in the answers that have come; returns `avoided`."""
        for node in alive():
            if node["NodeID"] not in self._seen:
                self._seen.add(node["NodeID"])
                self._asked[nodes.ask_versions(node)] = node
        asked = list(self._asked)
        for ref in ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else ():
            self._take_in(ref, self._asked.pop(ref))
        return self.avoided

    def _take_in(self, answer: ray.ObjectRef, node: Mapping[str, Any]) -> None:
        try:
            there = ray.get(answer)
        except RayError:  # it has gone away again, or can start no process: then no worker either
            return
        if faults := differences(self.here, {node_name(node): there}):
            self.avoided.append(node["NodeID"])
            logger.warning("%s: no trial goes there. %s", "; ".join(faults), nodes.SAME_CODE)
