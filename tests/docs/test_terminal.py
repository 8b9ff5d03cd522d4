"""The tools of these tests can fail: a page that is wrong is noticed."""

from pathlib import Path

import pytest

from tests.docs.pages import Block, anchors, blocks, links, steps
from tests.docs.terminal import Terminal, looks_like, needs_programs

CONSOLE = """\
text

```console
$ echo one \\
    two
one two
$ echo three   # a comment
```
"""


def test_commands_are_read_with_their_output() -> None:
    """Lines that continue a command belong to it, all others are its output; the line number is
    that of the page."""
    (block,) = blocks(CONSOLE)

    first, second = steps(block)

    assert (first.command, first.output, first.line) == ("echo one \\\n    two", "one two", 4)
    assert (second.command, second.output, second.line) == ("echo three   # a comment", "", 7)


def test_output_before_any_command_is_an_error() -> None:
    """A command without its prompt would not be run."""
    with pytest.raises(ValueError, match="line 5: output before any command"):
        list(steps(Block("console", "wearon migrate\n", 5)))


def test_links_and_anchors_are_those_outside_of_blocks() -> None:
    """A heading's anchor is in lower case, with dashes and without punctuation."""
    text = "# `PUT`: what it is\n\n[a](b.md#c)\n\n```text\n# no\n[x](y)\n```\n"

    assert links(text) == ["b.md#c"]
    assert anchors(text) == {"put-what-it-is"}


@pytest.mark.parametrize(
    ("shown", "output", "alike"),
    [
        ("200", "200\n", True),
        ("200", "503\n", False),
        ("exit code 0", "exit code 75", False),
        ('{"id":3,"kind":"debit"}', '{"id":7,"kind":"debit"}', True),
        ('{"id":3,"kind":"debit"}', '{"id":7,"kind":"grant"}', False),
        ('{"a":1,...,"z":null}', '{"a":1,"b":2,"z":null}', True),
        ('{"a":1,...,"z":null}', '{"a":1,"b":2}', False),
        ("applied 0001_initial\n...", "applied 0001_initial\napplied 0002_more\n", True),
        ("at 2026-11-24T20:26:01.053522Z", "at 2027-01-01T00:00:00Z", True),
        (f"wk_{'0' * 32}", f"wk_{'f' * 32}", True),
        (f"wk_{'0' * 32}", "wk_", False),
    ],
)
def test_output_is_compared_by_its_shape(shown: str, output: str, alike: bool) -> None:
    """Ids, times, keys and numbers in JSON differ from run to run; all else has to be the same."""
    assert looks_like(shown, output) is alike


@needs_programs
def test_terminal_keeps_variables_and_finds_no_other_programs(tmp_path: Path) -> None:
    """Commands share one shell; a program that a reader may not have fails."""
    with Terminal(tmp_path) as terminal:
        terminal.run("name=value")
        known = terminal.run('printf "%s" "$name"')
        unknown = terminal.run("kubectl get pods")

        assert known.output.strip() == "value"
        assert unknown.exit_code == 127
        assert "kubectl" in terminal.errors()
