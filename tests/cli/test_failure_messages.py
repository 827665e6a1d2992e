"""No exception of a library or of the system reaches a user: a message names the file and the remedy."""

import errno
import json
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors
from PIL import Image

from dit_video.cli.failure_messages import in_words
from dit_video.cli.main import main

# What libraries read, each in its own way of failing on NONSENSE.
READERS = {
    "av": lambda path: av.open(str(path)),
    "PIL": lambda path: Image.open(path),
    "bomb": lambda path: Image._decompression_bomb_check((10**6, 10**6)),
    "safetensors": lambda path: safetensors.safe_open(path, "numpy"),
    "zipfile": lambda path: zipfile.ZipFile(path),
    "tarfile": tarfile.open,
    "zlib": lambda path: zlib.decompress(path.read_bytes()),
    "lzma": lambda path: lzma.decompress(path.read_bytes()),
    "struct": lambda path: struct.unpack("<Q", path.read_bytes()),
    "json": lambda path: json.loads(path.read_bytes().decode("latin-1")),
    "nested": lambda path: json.loads("[" * 100_000),
    "utf-8": lambda path: path.read_text(encoding="utf-8"),
    "end": lambda path: np.load(path.with_name("empty")),
}
NONSENSE = bytes(range(128, 256)) * 8


def raised(read, path: Path) -> BaseException:
    """What `read` raises where a function of the package calls it, which knows the file as `path`."""
    scope = {"__name__": "dit_video.reader"}
    exec("def call(read, path):\n    read(path)", scope)
    try:
        scope["call"](read, path)
    except BaseException as error:
        return error
    raise AssertionError("it was read")


def test_a_file_is_named_whatever_it_is_called_where_it_is_read(tmp_path):
    (tmp_path / "odd.txt").write_bytes(NONSENSE)
    error = raised(lambda typed: typed["prompts"].read_text(encoding="utf-8"), {"prompts": tmp_path / "odd.txt"})
    assert in_words(error) == f"{tmp_path}/odd.txt: byte 0x80 is not UTF-8; save it as UTF-8"


@pytest.mark.parametrize("kind", READERS)
def test_what_a_library_raises_is_said_of_the_file(kind, tmp_path):
    (tmp_path / "odd.file").write_bytes(NONSENSE)
    (tmp_path / "empty").touch()
    message = in_words(raised(READERS[kind], tmp_path / "odd.file"))
    assert message.startswith(str(tmp_path))
    assert not re.search(r"Errno|codec can't|\n", message)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EMFILE, errno.EIO, errno.ELOOP, errno.ENOTTY])
def test_what_the_system_refuses_has_a_remedy(number):
    message = in_words(OSError(number, os.strerror(number), "some/file"))
    assert re.fullmatch(rf"some/file: {os.strerror(number)}; [a-z].+", message)


def test_errors_of_this_package_are_their_own_words_and_faults_of_it_keep_their_traceback():
    assert in_words(ValueError("a.csv line 3: no class")) == "a.csv line 3: no class"
    assert in_words(FileNotFoundError("set does not exist; make it")) == "set does not exist; make it"
    for fault in (KeyError("x"), TypeError("x"), AttributeError("x"), AssertionError()):
        assert in_words(fault) is None


def contents() -> dict[str, bytes | None]:
    """What may lie where a file should; None is a folder."""
    return {
        "nothing": b"",
        "noise": NONSENSE,
        "nested": b'{"a":' * 100_000,
        "half a zip": b"PK\x03\x04" + bytes(99),
        "safetensors of no end": b"\xff" * 8 + b"{" * 99,
        "object": b"{}",
        "list": b"[1]",
        "folder": None,
    }


# Words of a command whose file X is nonsense: what reads each kind of file that people have.
COMMANDS = {
    "label table": ["data", "ingest", "clips", "--out=set", "--caption=a", "--labels=X.csv"],
    "json lines": ["data", "ingest", "clips", "--out=set", "--caption=a", "--labels=X.JSONL"],
    "tar": ["data", "ingest", "X.tar", "--out=set"],
    "set": ["data", "inspect", "X"],
    "array": ["evaluate", "fvd", "--real=X.npy", "--fake=X.npy"],
    "arrays": ["evaluate", "fvd", "--real=X.NPZ", "--fake=X.NPZ"],
    "card": ["evaluate", "compare", "X.json", "X.json"],
    "experiment": ["show", "--config=X.py"],
    "weights": ["import", "X.safetensors", "--out=run"],
    "weights in capitals": ["import", "X.SAFETENSORS", "--out=run"],
    "torch weights": ["import", "X.pt", "--out=run", f"--sha256={'0' * 64}"],
    "digests": ["import", "w.bin", "--out=run", "--sha256=X.txt"],
    "run": ["inspect", "X"],
    "two runs": ["diff", "X", "X"],
}


# Of these each has found a fault; the others come with the slow ones.
TELLING = ("noise", "nested", "safetensors of no end", "folder")


@pytest.mark.parametrize(
    "content", [pytest.param(name, marks=() if name in TELLING else pytest.mark.slow) for name in contents()]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_lies_where_a_file_should_a_command_names_it(command, content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    (Path("clips") / "a.mp4").write_bytes(b"no video")
    Path("w.bin").write_bytes(b"no weights")
    words, what = COMMANDS[command], contents()[content]
    name = next(re.search(r"X[.\w]*", word)[0] for word in words if "X" in word)
    Path(name).mkdir() if what is None else Path(name).write_bytes(what)
    if command == "set" and what is not None:
        Path(name).unlink()
        Path(name).mkdir()
        (Path(name) / "manifest.json").write_bytes(what)
    assert main(words) == 1
    message = capsys.readouterr().err
    assert name in message
    # An experiment is the user's own program: what Python says of it is what they want to read.
    assert not re.search(r"Traceback|Errno" if command == "experiment" else r"Traceback|Errno|codec can't", message)
