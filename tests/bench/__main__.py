"""One bench by its name, with the options that it takes: `make bench ARGS=NAME`, or `python -m tests.bench NAME`.

Without a name all are listed. `all` runs those that every machine can, one after the other, until one fails.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainables.values.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent
FILES = {
    "measurement": "measurement.py",
    "memory": "memory_shapes.py",
    "outside": "outside.py",
    "rank-rule": "rank_rule.py",
    "verdict": "verdict.py",
    "coverage": "coverage.py",
    "speed": "speed.py",
    "overhead": "overhead.py",
    "load": "load.py",
    "search": "search.py",
    "order": "order.py",
    "time-left": "time_left.py",
    "time-to-answer": "time_to_answer.py",
    "cluster": "cluster.py",
    "mlflow-faults": "mlflow_faults.py",
    "stand-in": "stand_in.py",
    "short-rows": "short_rows.py",
}
ALL = ("measurement", "memory", "outside", "rank-rule", "verdict", "coverage", "speed", "overhead", "load")


def command(name: str) -> list[str]:
    """What starts a bench.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FILES:
        raise ConfigError(f"no bench {name!r}{did_you_mean(name, [*FILES, 'all'])}")
    return [sys.executable, str(FOLDER / FILES[name])]


def listed() -> str:
    """Each bench with what it is for: the first line of its own description."""
    lines = []
    for name, file in FILES.items():
        purpose = (ast.get_docstring(ast.parse((FOLDER / file).read_text(encoding="utf-8"))) or "").splitlines()[0]
        lines.append(f"{name:16}{purpose.partition('`')[0].rstrip(' :.')}")
    return "\n".join([*lines, f"{'all':16}{', '.join(ALL)}"])


def main(words: Sequence[str]) -> int:
    if not words:
        print(listed())
        return 0
    name, *rest = words
    try:
        chosen = [command(one) for one in (ALL if name == "all" else (name,))]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    paths = [str(FOLDER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for one in chosen:
        if code := subprocess.call([*one, *rest], env=environment):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
