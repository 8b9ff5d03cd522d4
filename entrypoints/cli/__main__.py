"""``python -m entrypoints.cli`` is the ``wearon`` command."""

from entrypoints.cli import main

if __name__ == "__main__":  # not in an API process, which imports this module again
    main()
