"""The command line: `qlora-sweep`, or `python -m orchestrator.cli`; see orchestrator.cli.main."""
