"""What all trials of a sweep share, and which commit of a hub's repo its base is of."""

from dataclasses import replace

import pytest

from tests.support.sweeps import WORKLOAD

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHED = f"/home/me/hub/models--org--name/snapshots/{COMMIT}"


@pytest.mark.parametrize(
    ("folder", "commit"),
    [
        (CACHED, COMMIT),
        (f"{CACHED}/", COMMIT),
        (f"{CACHED}/inner", None),
        (f"/models/snapshots/{COMMIT}", None),
        ("/models/base", None),
    ],
)
def test_the_commit_is_that_of_the_folder_in_the_hubs_cache(folder, commit):
    assert replace(WORKLOAD, base_folder=folder).base_commit == commit
