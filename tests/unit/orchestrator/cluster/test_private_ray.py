"""What a Ray of this machine alone is started with."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.private_ray import MAX_CPU_WORKERS, SPARE_CPUS, _private


@given(n_cpus=st.integers(1, 256), n_gpus=st.integers(1, 16), share=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0, 2.0]))
def test_as_many_trials_run_on_gpus_as_all_cpus_allow_and_no_more_processes_start_than_they_need(n_cpus, n_gpus, share):
    started = _private(range(n_cpus), n_gpus, share)
    assert started["num_gpus"] == n_gpus
    n_at_once = int(n_gpus / share + 1e-9)
    assert min(started["num_cpus"], n_at_once) == min(max(n_cpus, n_gpus), n_at_once)
    assert started["num_cpus"] <= n_at_once + 1 + SPARE_CPUS


def test_without_a_gpu_no_more_trials_run_at_once_than_memory_is_likely_to_hold():
    assert [_private(range(n), 0)["num_cpus"] for n in (1, 2, 64)] == [1, 2, MAX_CPU_WORKERS]
