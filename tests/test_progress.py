"""What is printed is what was meant: names are no markup, move no cursor and are not cut."""

import io

import pytest
from rich.table import Table

from dit_video.progress import Terminal, counted, headed, shown

NAMES = ["a[red]b", "[/x]", "[bold]", ":smile:", "a" * 300, "it's [1, 2]", "ä/日本"]


def printed(*objects) -> str:
    file = io.StringIO()
    Terminal(file=file).print(*objects)
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name):
    table = Table(name, title=name)
    table.add_row(name)
    assert printed(name) == name + "\n"
    assert printed(headed("error:", "bold red", f" {name}")) == f"error: {name}\n"
    assert printed(table).count(name) == 3
    file = io.StringIO()
    assert list(counted([1, 2], name, total=2, console=Terminal(file=file))) == [1, 2]
    assert name in file.getvalue()


def test_a_title_wider_than_its_table_is_one_line():
    table = Table("a", title="what this is a table of")
    table.add_row("1")
    assert "what this is a table of" in printed(table)


@pytest.mark.parametrize("code", [*range(32), 127, *range(128, 160), 0x202E, 0x200B, 0xFFF9])
def test_control_characters_are_escaped(code):
    """C0 and C1 codes, and what turns or hides text."""
    name = f"a{chr(code)}b"
    if chr(code) in "\n\t":
        assert shown(name) == name
        return
    for text in (shown(name), printed(name), printed(headed("", "bold", name))):
        assert chr(code) not in text.removesuffix("\n")
        assert text.startswith("a\\")


def test_a_terminal_gets_whole_lines_to_break_itself():
    file = io.StringIO()
    Terminal(file=file, width=40, force_terminal=True, color_system=None).print("x" * 100)
    assert file.getvalue() == "x" * 100 + "\n"
