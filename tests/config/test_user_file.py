"""Laws of the experiments that come along: what is shown of each is read from its file, which is not run."""

import pytest

from dit_video.config.user_file import Packaged, _described, packaged, packaged_experiments

DOCUMENTED = '''"""One line.

And more.
"""
raise SystemExit

def other(arg):
    """Of another."""

def get_config(arg=""):
    """A size: S or B.

    And more.
    """
'''


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (DOCUMENTED, ("One line.", "A size: S or B.")),
        ("def get_config(arg=''):\n    return arg\n", ("", "")),
        ("get_config = None\n", ("", "")),
    ],
)
def test_an_experiment_is_shown_by_the_first_lines_of_its_docstrings(tmp_path, text, shown):
    (tmp_path / "mine.py").write_text(text)
    assert _described(tmp_path / "mine.py") == Packaged("experiments/mine.py", *shown)


def test_experiments_that_come_along_are_found_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = packaged_experiments()[0].name
    for typed in (name, f"{name}:argument"):
        file = packaged(typed)
        assert file is not None
        assert f"experiments/{file.name}" == name
    assert packaged("experiments/nowhere.py") is None
    assert packaged(f"other/{name}") is None
    assert packaged(file.name) is None
    (tmp_path / "experiments").mkdir()
    (tmp_path / name).write_text("")
    assert packaged(name) is None
