"""A run is one thing: packed and unpacked elsewhere it is whole, and what is no run is refused."""

import io
import json
import tarfile
from pathlib import Path

import jax.numpy as jnp
import pytest
from toys import SMALL_DENOISE, SMALL_VAE, FitLines, untrained

from dit_video import Autoencode, Data, NoData, VideoSet
from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.config.components import to_json
from dit_video.config.json_file import read_object
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment, record
from dit_video.run.fresh_start import is_claimed
from dit_video.run.frozen import with_codec_inside
from dit_video.run.pack import pack, unpack
from dit_video.run.places import PLACES, located
from dit_video.run.shown import SHOWN, record_shown, without_missing_data
from dit_video.training.step import TrainState


def make(folder: Path, experiment: Experiment, step: int = 3) -> Path:
    """A run with one checkpoint."""
    record(experiment, folder, [], allow_change=False)
    shapes = define(experiment.task.init).shapes
    params = {name: jnp.full(shape.shape, step, shape.dtype) for name, shape in shapes.items()}
    with Checkpoints(folder, experiment=to_json(experiment)) as checkpoints:
        checkpoints.save(step, TrainState(jnp.int32(step), params, params, {"count": jnp.int32(step)}), next_batch=step)
        checkpoints.wait()
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The run of a VAE and one of a DiT on its latents, which are made in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs/none", untrained(Autoencode(vae=SMALL_VAE)))
    make(tmp_path / "runs/dit", untrained(SMALL_DENOISE))
    (tmp_path / "runs/dit/samples").mkdir()
    (tmp_path / "runs/dit/samples/a.mp4").write_bytes(b"a clip")
    (tmp_path / "runs/dit/events.jsonl").write_text("")
    (tmp_path / "runs/dit/samples/link").symlink_to("/etc/passwd")
    return tmp_path


def test_a_packed_run_is_whole_elsewhere_with_its_codec_inside(runs, monkeypatch):
    packed = pack(Path("runs/dit"), Path("dit.tar"))
    assert packed.step == 3
    with tarfile.open("dit.tar") as archive:
        names = archive.getnames()
        assert len(names) == packed.num_files == len(set(names))
        assert all(member.isfile() and (member.uid, member.uname) == (0, "") for member in archive.getmembers())
    assert all(name.startswith("dit/") for name in names)
    assert "dit/none/experiment.json" in names
    assert "dit/samples/a.mp4" in names
    assert "dit/samples/link" not in names
    elsewhere = runs / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    unpack(runs / "dit.tar", Path("theirs"))
    (runs / "runs").rename(runs / "gone")
    assert PLACES not in read_object(Path("theirs") / EXPERIMENT_FILE)
    assert read_experiment(Path("theirs")) == untrained(SMALL_DENOISE)
    experiment = with_codec_inside(
        located(read_experiment(Path("theirs")), Path("theirs/experiment.json")), Path("theirs")
    )
    codec = experiment.task.trained_codec()
    assert codec is not None
    assert Path(codec.run) == Path("theirs/none")
    for run in ("theirs", "theirs/none"):
        checkpoints = Checkpoints(Path(run))
        assert checkpoints.steps == [3]
        checkpoints.close()
    # What was packed can be packed again.
    assert pack(Path("theirs"), Path("again.tar")).num_files == packed.num_files


def test_what_is_missing_is_named(runs):
    with pytest.raises(ValueError, match=r"has no checkpoint of step 4; there are 3"):
        pack(Path("runs/dit"), Path("x.tar"), step=4)
    Path("runs/none").rename("runs/other")
    with pytest.raises(ValueError, match=r"its codec is not in runs/none; bring that run back"):
        pack(Path("runs/dit"), Path("x.tar"))
    assert not Path("x.tar").exists()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("dit/../../evil", tarfile.REGTYPE, "evil"),
        ("dit/evil", tarfile.SYMTYPE, "is a link or a device"),
        ("dit/evil", tarfile.LNKTYPE, "is a link or a device"),
        ("dit/evil", tarfile.CHRTYPE, "is a link or a device"),
        ("evil", tarfile.REGTYPE, "has 2 things in it"),
        ("dit/fine", tarfile.REGTYPE, "has no experiment.json"),
    ],
)
def test_an_archive_that_is_no_run_writes_nothing(tmp_path, name, kind, message):
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as archive:
        first = "dit/other" if name == "dit/fine" else "dit/experiment.json"
        for member, of_type in ((first, tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(member)
            info.type, info.linkname, info.size = of_type, "/etc/passwd", 2 if of_type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match=message):
        unpack(file, tmp_path / "inside" / "out")
    assert not (tmp_path / "inside" / "out").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"a note", b""])
def test_what_is_no_archive_is_named(tmp_path, content):
    (tmp_path / "run.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"/run\.tar: is no whole tar archive; nothing was unpacked"):
        unpack(tmp_path / "run.tar", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run.tar"]


def test_a_run_knows_rate_and_classes_where_its_data_are_gone(tmp_path, video_set):
    experiment = untrained(FitLines())
    data = Data(source=VideoSet(directory=str(video_set)), clips=experiment.data.clips, batch_size=2)
    experiment = Experiment(task=FitLines(), data=data, optimizer=experiment.optimizer, schedule=experiment.schedule)
    file = tmp_path / "run" / EXPERIMENT_FILE
    file.parent.mkdir()
    file.write_text(json.dumps({"a": 1}))
    assert without_missing_data(experiment, file) == experiment
    names = data.source.info().class_names
    record_shown(file, experiment, (12.5, 25.0))
    assert read_object(file) == {"a": 1, SHOWN: {"fps": [12.5, 25.0], "class_names": list(names)}}
    assert without_missing_data(experiment, file) == experiment
    video_set.rename(tmp_path / "moved")
    known = without_missing_data(experiment, file).data.source
    assert known == NoData(class_names=names, fps=12.5)


def test_a_start_that_came_to_no_step_leaves_the_folder_to_another(tmp_path):
    experiment = untrained(FitLines())
    record(experiment, tmp_path / "run", [], allow_change=False)
    assert not is_claimed(tmp_path / "run", print)
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    assert is_claimed(tmp_path / "run", print)
    assert is_claimed(make(tmp_path / "saved", experiment), print)
