"""Tars of strangers: what a header claims is bounded, and one bad member is left out and named."""

import io
import resource
import tarfile
from pathlib import Path

import pytest

from dit_video.ingest.source_files import files, is_tar, list_files


def add(archive: tarfile.TarFile, name: str, content: bytes = b"a video", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def read(path: Path, spool: Path) -> dict[str, str | bytes]:
    """Of each member its content, or the reason why it is left out."""
    return {item.name: item.reason or copied.read_bytes() for item, copied in files(list_files([path]), spool)}


def test_a_huge_description_of_a_member_is_not_read_and_the_others_are(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        add(archive, "one.mp4")
        add(archive, "described", b"9 path=x\n" * (1 << 18), type=tarfile.XHDTYPE)
        add(archive, "two.mp4")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read(path, tmp_path)
    assert found.pop("described") == "not a regular file"
    assert found == {"one.mp4": b"a video", "two.mp4": b"a video"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
def test_a_description_that_claims_more_than_there_is_takes_no_memory(kind, tmp_path):
    member = tarfile.TarInfo("x")
    member.size, member.type = 1 << 40, kind
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ValueError, match=r"a\.tar"):
        read(tmp_path / "a.tar", tmp_path)


def test_a_sparse_member_and_one_that_would_fill_a_disk_are_left_out(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 38)}
        add(archive, "sparse.mp4", b"1\n0\n512\n".ljust(512, b"\0") + bytes(512), pax_headers=sparse)
        add(archive, "good.mp4")
    found = read(path, tmp_path)
    assert "a sparse file" in found.pop("sparse.mp4")
    assert found == {"good.mp4": b"a video"}
    member = tarfile.TarInfo("large.mp4")
    member.size = 1 << 40
    (tmp_path / "b.tar").write_bytes(path.read_bytes()[:-10240] + member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ValueError, match=r"b\.tar: the archive breaks off"):
        read(tmp_path / "b.tar", tmp_path)


def test_a_long_suffix_becomes_no_name_here(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, f"clip.{'x' * 300}")
        add(archive, "two.mp4")
    assert set(read(tmp_path / "a.tar", tmp_path).values()) == {b"a video"}


def test_a_packed_tar_that_is_cut_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        add(archive, "one.mp4", bytes(range(256)) * 99)
    whole = (tmp_path / "a.tar.gz").read_bytes()
    for length in range(0, len(whole) - 8, 37):
        (tmp_path / "b.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"b\.tar\.gz"):
            read(tmp_path / "b.tar.gz", tmp_path)
    (tmp_path / "text").write_text("no tar")
    assert not is_tar(tmp_path / "text")
