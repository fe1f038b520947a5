"""The command line: `qlora-sweep`, or `python -m orchestrator.cli`."""


def main() -> None:
    """Entry point of the installed command; the commands themselves are imported by who calls it."""
    from orchestrator.cli.app import main as run

    run()
