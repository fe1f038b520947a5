"""One module a command, with one function of its name; see orchestrator.cli.group, which lists and loads them."""
