"""Text for terminals."""


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with its control characters escaped, except those in ``keep``. Text from callers may
    hold sequences that a terminal would execute, or a line end that begins a forged line."""
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1]
        for character in text
    )
