"""`sample --out_dir` and `dit_video.open`: a clip is a function of run, prompt, seed and number, wherever made."""

import argparse
import dataclasses
import json
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from toys import FitLines, small_mesh, untrained

from dit_video import NoData
from dit_video.cli.sample_files import encoded, file_stem, require_place, take_prompts, write_clips
from dit_video.nn.module import define, params_of
from dit_video.run.open_run import OpenRun
from dit_video.run.opened import Run
from dit_video.run.prompts import rows, typed

SHAPE = (3, 16, 16)
CLASSES = ("zero", "one", "two")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greys(FitLines):
    """Every pixel of a clip is 50 times its label, and what is drawn from its key."""

    reads = ("label",)

    def generate(self, model, frozen, batch, rngs, shape):
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, 50))(rngs)
        grey = (50 * jnp.asarray(batch.signals["label"]) + drawn).astype(jnp.uint8)
        return jnp.broadcast_to(grey[:, None, None, None, None], (len(grey), *shape, 3))


@pytest.fixture
def opened() -> OpenRun:
    experiment = untrained(Greys())
    data = dataclasses.replace(experiment.data, source=NoData(class_names=CLASSES, fps=8.0))
    experiment = dataclasses.replace(experiment, data=data)
    definition = define(experiment.task.init)
    params = params_of(experiment.task.init(jax.random.key(0)))
    return OpenRun(Path("runs/greys"), experiment, definition, params, None, small_mesh(2), 7, True)


def written(opened: OpenRun, out_dir: Path, prompts: str, num: int, shape=SHAPE) -> dict[str, bytes]:
    file = out_dir.parent / "prompts.txt"
    file.write_text(prompts)
    arguments = argparse.Namespace(
        prompts=file, num_per_prompt=num, out_dir=out_dir, seed=3, label=None, text=None, cond=[], num_clips=1
    )
    take_prompts(arguments, opened.experiment.task)
    batches = rows(opened, typed({}, arguments.cond), print)
    assert write_clips(arguments, opened, batches, shape, 8.0, Console(quiet=True)) == 0
    return {path.name: path.read_bytes() for path in out_dir.iterdir()}


def test_a_clip_is_the_same_whatever_is_made_with_it(opened, tmp_path):
    all_of_them = written(opened, tmp_path / "all", "zero\n\ntwo\none\n", 3)
    assert sorted(all_of_them) == [f"{name}-{i}.mp4" for name in sorted(CLASSES) for i in range(3)]
    assert len({content for content in all_of_them.values()}) == 9
    few = written(opened, tmp_path / "few", "two\n", 2)
    assert few == {name: all_of_them[name] for name in ("two-0.mp4", "two-1.mp4")}
    # What is there stays, and the rest is made.
    (tmp_path / "few" / "two-1.mp4").write_bytes(b"mine")
    assert written(opened, tmp_path / "few", "two\none\nzero", 3) == {**all_of_them, "two-1.mp4": b"mine"}


def test_a_file_holds_its_prompt_seed_and_number(opened, tmp_path):
    written(opened, tmp_path / "clips", "two", 2)
    with av.open(str(tmp_path / "clips/two-1.mp4")) as container:
        about = json.loads(container.metadata["comment"])
    assert about == {"prompt": "two", "seed": 3, "clip": 1, "run": "greys", "step": 7, "ema": True}
    written(opened, tmp_path / "stills", "two", 1, shape=(1, 16, 16))
    with Image.open(tmp_path / "stills/two-0.png") as image:
        assert json.loads(image.info["comment"])["prompt"] == "two"
        assert image.size == (16, 16)


def test_python_makes_the_clips_of_the_command(opened, tmp_path):
    run = Run(opened)
    made = run.sample(label=["two", "one"], num_clips=2, seed=3)
    assert made.shape == (4, *run.sample(label=0).shape[1:])
    np.testing.assert_array_equal(made[:2], run.sample(label=2, num_clips=2, seed=3))
    same = encoded(run.sample(label="two", num_clips=2, seed=3)[1], 8.0, "")
    files = written(opened, tmp_path / "clips", "two", 2, shape=made.shape[1:4])
    with av.open(str(tmp_path / "clips/two-1.mp4")) as there:
        frames = [frame.to_ndarray(format="rgb24") for frame in there.decode(video=0)]
    assert len(files) == 2
    (tmp_path / "same.mp4").write_bytes(same)
    with av.open(str(tmp_path / "same.mp4")) as here:
        np.testing.assert_array_equal(frames, [f.to_ndarray(format="rgb24") for f in here.decode(video=0)])
    with pytest.raises(ValueError, match=r"text='a cat': this run is not conditioned on .*; it is on label"):
        run.sample(text="a cat")
    assert run.fps == 8.0


def test_a_prompt_is_the_name_of_its_file_where_it_can_be_one():
    assert file_stem("a cat, asleep") == "a cat, asleep"
    for prompt in ("a/b", "x" * 300, "..", "tab\there", "é" * 150):
        stem = file_stem(prompt)
        assert len(f"{stem}-0.mp4".encode()) < 255
        assert "/" not in stem
        assert not stem.startswith(".")
        assert stem != file_stem(prompt + "!")


def test_where_clips_go_is_said_in_one_way(opened, tmp_path):
    for out, out_dir in ((None, None), ([Path("a.mp4")], Path("b"))):
        with pytest.raises(ValueError, match="--out, --out_dir: name files for a grid"):
            require_place(out, out_dir, None)
    with pytest.raises(ValueError, match="--num_per_prompt=3: is of --out_dir"):
        require_place([Path("a.mp4")], None, 3)
    with pytest.raises(ValueError, match="holds no prompt; write one to a line"):
        written(opened, tmp_path / "none", "\n \n", 1)
