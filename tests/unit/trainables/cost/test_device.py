"""How many GPUs and cores this process may use, asked without PyTorch."""

import os
from types import SimpleNamespace

import pytest
import torch

from trainables.cost.device import SPARE_CORES, compute_capability, count_by_driver, has_spare_cores, is_for_cuda


class NVMLError(Exception):
    """As pynvml raises."""


def nvml(n: int | None):
    """NVIDIA's library on a machine of so many GPUs; None: without a driver."""

    def begin() -> None:
        if n is None:
            raise NVMLError

    def handle(index: int) -> int:
        if index >= n:
            raise NVMLError
        return index

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=begin,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: n,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetCudaComputeCapability=lambda index: (7 + index, 5),
    )


@pytest.mark.parametrize(
    ("visible", "counted"),
    [(None, 4), ("0", 1), ("2,0", 2), (" 1 , 3 ", 2), ("0,4,1", 1), ("4", 0), ("0,0", None), ("GPU-5a1b", None)],
)
def test_as_many_gpus_are_counted_as_cuda_leaves_of_those_named(visible, counted, monkeypatch):
    """CUDA Programming Guide, CUDA_VISIBLE_DEVICES: of several indices those before the first that there is not."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_by_driver(nvml(4)) == counted


def test_pytorch_is_asked_where_the_driver_says_nothing(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_by_driver(nvml(None)) is None


@pytest.mark.parametrize(
    ("visible", "n_gpus", "capability"),
    [
        (None, 4, 75),
        ("2,0", 4, 95),
        ("1", 4, 85),
        ("4", 4, None),
        ("GPU-5a1b", 4, None),
        ("", 4, None),
        ("0", None, None),
    ],
)
def test_the_compute_capability_is_that_of_the_first_device_that_may_be_used(visible, n_gpus, capability, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert compute_capability(nvml(n_gpus)) == capability


def test_the_build_of_the_installed_pytorch_is_known_without_importing_it():
    with open(torch.version.__file__) as file:
        assert is_for_cuda(file.read()) == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    "quota", [None, "max 100000", "800000 100000", "400000 50000", "799999 100000", "200000 100000"]
)
@pytest.mark.parametrize("allowed", [SPARE_CORES - 1, SPARE_CORES, 64])
def test_cores_are_spare_where_neither_affinity_nor_a_containers_quota_leaves_fewer_than_8(
    quota, allowed, monkeypatch, tmp_path
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(f"{quota}\n")
    assert has_spare_cores(file) == (allowed >= 8 and quota not in ("799999 100000", "200000 100000"))
