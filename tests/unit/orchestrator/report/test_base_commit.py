"""Which commit of a hub's repo a sweep's base is of, wherever its base is named."""

from dataclasses import asdict, replace

from orchestrator.report import export, render
from orchestrator.report.card import card_of
from orchestrator.report.content import report_of
from tests.support.sweeps import WORKLOAD, make, snapshot, trial

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHED = f"/home/me/hub/models--org--name/snapshots/{COMMIT}"
ON_HUB = replace(WORKLOAD, base_model="org/name@main", base_folder=CACHED, weights="pretrained")


def test_report_card_and_script_name_the_commit_that_a_revision_was_pinned_to():
    found = snapshot(make(), [trial(0)], {"workload": asdict(ON_HUB), "created_at": 100.0})
    report = report_of(found, lambda config: None)
    assert f"| base commit on the hub | {COMMIT} |" in render.markdown(report, {})
    assert f"of commit `{COMMIT}` on the hub" in card_of(report).content
    assert f"revision='{COMMIT}'" in export.script(("16bit", ()), ON_HUB, merged=False)
    assert "commit on the hub" not in render.markdown(replace(report, workload=WORKLOAD), {})
