"""``python -m tests.incidents [NAME...]``: each incident, or those whose names have a NAME."""

import sys

from tests.incidents.run import run

if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1:], lambda line: print(line, flush=True)) else 1)  # noqa: T201
