"""``python -m entrypoints.cli`` is the ``wearon`` command."""

from entrypoints.cli import main

main()
