"""`python -m orchestrator.cli`: the same as `qlora-sweep`."""

from orchestrator.cli.main import main

if __name__ == "__main__":
    main()
