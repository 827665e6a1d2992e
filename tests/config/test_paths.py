"""Paths mean what they mean in a shell, or are refused with the word that means nothing."""

from pathlib import Path

import pytest

from dit_video.config.paths import expand, expanded


def test_home_and_variables_are_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("SET_2", "two")
    assert expanded("~/a") == "/home/me/a"
    assert expanded("$DATA/${SET_2}/a~b") == "/data/two/a~b"
    assert expanded("~") == str(Path.home())
    assert expanded("a/~/b") == "a/~/b"
    assert expanded("plain") == "plain"


def test_what_means_nothing_is_named(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    for text in ("$NOWHERE/a", "${NOWHERE}/a"):
        with pytest.raises(ValueError, match="the environment variable NOWHERE is not set; set it, or write the path"):
            expanded(text)
    with pytest.raises(ValueError, match=r"~nobody_here is no home folder on this machine; .* or \./~nobody_here$"):
        expanded("~nobody_here/a")


class Component:
    PATHS = ("directory", "other")

    def __init__(self, directory: str | None, other: str | None = None):
        self.directory, self.other = directory, other


def test_every_named_field_is_replaced_and_none_stays(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    component = Component(None, "$DATA/a")
    expand(component)
    assert (component.directory, component.other) == (None, "/data/a")
    with pytest.raises(ValueError, match=r"^Component\.other=\$NOWHERE: the environment variable"):
        expand(Component(None, "$NOWHERE"))
    with pytest.raises(ValueError, match=r"^Component\.directory=is empty"):
        expand(Component(""))
