"""What goes to a worker and what comes back."""

from orchestrator.ledger.task import TaskReport


def test_the_text_of_a_report_does_not_grow_with_its_adapter():
    small, large = (TaskReport(state="completed", adapter={"weights": b"\0" * n}) for n in (1, 2**20))
    assert repr(small) == repr(large)
    assert small != large
