"""Whatever the record of a run names, who looks at it, samples or judges writes nothing outside the run and --out."""

import shutil
from pathlib import Path

import pytest

from dit_video.cli.main import main
from dit_video.config.json_file import read_object, write_json
from dit_video.run.codec import STATISTICS
from dit_video.run.folder import EXPERIMENT_FILE

RUNS = Path(__file__).parent.parent / "fixtures" / "old_runs" / "runs.zip"
OUT = "out"
SAMPLE = ("sample", "--workdir=dit", f"--out={OUT}/clips.gif", "--num_clips=1", "--num_steps=1", "--label=0")
EXPORT = ("export", "--workdir=dit", f"--out={OUT}/exported", "--format=safetensors")
EVALUATE = ("evaluate", "run", "--workdir=dit", "--num_clips=2")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shutil.unpack_archive(RUNS, folder)
    return folder


@pytest.fixture
def sandbox(unpacked, tmp_path, monkeypatch) -> Path:
    """The run `dit`, its codec `vae` and their data, in the working folder; caches of the user are in it, too."""
    folder = tmp_path / "sandbox"
    shutil.copytree(unpacked, folder)
    (folder / OUT).mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return folder


def outside(sandbox: Path) -> dict[str, bytes | None]:
    """All files with their contents, and folders, but for those in the run and in --out."""
    paths = {str(path.relative_to(sandbox.parent)): path for path in sandbox.parent.rglob("*")}
    own = tuple(f"{sandbox.name}/{name}" for name in ("dit", OUT))
    return {n: p.read_bytes() if p.is_file() else None for n, p in paths.items() if not n.startswith(own)}


def name_source(run: Path, directory: str) -> None:
    content = read_object(run / EXPERIMENT_FILE)
    content["experiment"]["data"]["source"]["directory"] = directory
    write_json(run / EXPERIMENT_FILE, content)


@pytest.mark.parametrize("directory", ["../beside", "~/made"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("show", "--config=dit"), 0),
        (("show", "--config=dit", "--check"), 1),
        (("inspect", "dit", "--verify"), 0),
        (EVALUATE, 1),
    ],
)
def test_no_set_is_prepared_for_who_only_looks(sandbox, directory, words, code):
    name_source(sandbox / "dit", directory)
    before = outside(sandbox)
    assert main(list(words)) == code
    assert outside(sandbox) == before


def test_it_is_said_how_the_set_is_made(sandbox, capsys):
    name_source(sandbox / "dit", "new/digits")
    assert main(list(EVALUATE)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "make them with: dit-video data digits --out new/digits --num_train " in said


@pytest.mark.slow
@pytest.mark.parametrize("words", [SAMPLE, EXPORT])
def test_a_run_without_its_set_is_sampled_and_exported_and_none_is_made(sandbox, words):
    name_source(sandbox / "dit", "new/digits")
    before = outside(sandbox)
    assert main(list(words)) == 0
    assert outside(sandbox) == before
    assert any((sandbox / OUT).iterdir())


@pytest.mark.slow
def test_a_codec_that_the_record_names_stays_as_it_is(sandbox, capsys):
    """Its latent statistics are measured where it has none, and not kept; where its set is gone nothing is measured."""
    (sandbox / "vae" / STATISTICS).unlink()
    before = outside(sandbox)
    assert main([*SAMPLE]) == 0
    assert outside(sandbox) == before
    shutil.rmtree(sandbox / "digits")
    before = outside(sandbox)
    assert main([*SAMPLE]) == 1
    assert outside(sandbox) == before
    shutil.rmtree(sandbox / "vae" / "checkpoints")
    before = outside(sandbox)
    assert main([*SAMPLE]) == 1
    assert "there are no checkpoints of this codec" in " ".join(capsys.readouterr().err.split())
    assert outside(sandbox) == before
