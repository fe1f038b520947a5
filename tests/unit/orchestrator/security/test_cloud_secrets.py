"""Which parts of a sweep have the cloud's credentials in their environment."""

import os

import pytest

from orchestrator.security import ray_guard

TOKEN = "AWS_SESSION_TOKEN"


@pytest.mark.parametrize("fails", [False, True])
def test_only_what_asks_for_them_has_cloud_secrets_while_trials_processes_are_made(monkeypatch, fails):
    monkeypatch.setenv(TOKEN, "canary")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    seen = []

    def work() -> None:
        seen.append(os.environ.get(TOKEN))
        if fails:
            raise OSError

    asks = ray_guard.with_cloud_secrets(work)
    with ray_guard.keep_cloud_secrets():
        assert TOKEN not in os.environ
        try:
            asks()
        except OSError:
            assert fails
        assert TOKEN not in os.environ
        assert "AWS_ACCESS_KEY_ID" not in os.environ
    assert seen == ["canary"]
    assert os.environ[TOKEN] == "canary"
