"""An export is there whole or not at all."""

import pytest

from dit_video.export.folder import fresh_folder


def test_the_folder_gets_its_name_when_all_is_written(tmp_path):
    out = tmp_path / "deep" / "exported"
    with fresh_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_may_be_there(tmp_path):
    with fresh_folder(tmp_path / ".") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "a").exists()


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    def export():
        with fresh_folder(tmp_path / "exported") as folder:
            (folder / "a").write_text("1")
            raise ValueError("a tensor differs")

    with pytest.raises(ValueError, match="a tensor differs"):
        export()
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_written_over(tmp_path):
    (tmp_path / "precious").write_text("1")
    for out in (tmp_path, tmp_path / "precious"):
        with pytest.raises(FileExistsError, match="name another folder or remove this one"), fresh_folder(out):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
