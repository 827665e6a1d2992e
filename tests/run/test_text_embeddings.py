"""From captions to clips through a frozen text encoder: encode, train, sample, by the commands a user types."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from published_text import save_t5
from rich.console import Console
from toys import small_mesh

from dit_video.cli.main import main
from dit_video.data.record import Split
from dit_video.encoders.load_text_encoders import TextEncoders
from dit_video.experiment import Experiment, load
from dit_video.run.open_run import open_run

pytestmark = pytest.mark.slow
EXPERIMENT = """
import dataclasses
from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.data.signals import ClassLabel
from dit_video.data.text_cache import TextCache
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.dit import DiTConfig
from dit_video.evaluation.evaluators import Samples
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.encoders.text import wan_text
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig

VAE = VideoVAEConfig(channels=8, multipliers=(1,), strides=((4, 8, 8),), num_blocks=1, num_decoder_blocks=1,
                     latent_channels=4)
TEXT = wan_text("pipeline")

def get_config(arg="dit"):
    source = MovingDigits(directory="digits", num_train=24, num_held_out=8, size=16, num_frames=5, digit_size=10)
    data = Data(source=source, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=8, num_threads=2)
    rest = dict(optimizer=AdamW(learning_rate=1e-2), schedule=Schedule(num_steps=2, log_every=1, save_every=2))
    if arg == "vae":
        return Experiment(task=Autoencode(vae=VAE), data=data, **rest | {"schedule": Schedule(num_steps=1)})
    task = Denoise(
        network=DiTConfig(hidden_size=32, depth=1, num_heads=2, patch_size=(1, 1, 1)),
        codec=TrainedCodec(vae=VAE, run="vae"),
        condition=EmbeddedText(hidden_size=12, pooled_size=12, num_tokens=20, drop_rate=0.5),
        text=dataclasses.replace(TEXT, t5=dataclasses.replace(TEXT.t5, num_tokens=20)),
        sampler=Euler(num_steps=2),
        guidance=Guidance(scale=3.0),
    )
    signals = {"label": ClassLabel(), "text": TextCache(directory="texts")}
    data = dataclasses.replace(data, cache=LatentCache(directory="latents"), signals=signals)
    return Experiment(task=task, data=data, evaluators={"samples": Samples(every=2, num_clips=2)}, **rest)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with digits, a codec, text encoders, both caches and a run `dit` that was trained on them."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tiny.py").write_text(EXPERIMENT)
    save_t5(folder / "pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--config=tiny.py:vae", "--workdir=vae"]) == 0
        assert main(["encode", "--config=tiny.py"]) == 0
        assert main(["train", "--config=tiny.py", "--workdir=dit"]) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def experiment_with(**changes) -> Experiment:
    experiment = load("tiny.py")
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changes))


def sampled(name: str, *words: str) -> np.ndarray:
    assert main(["sample", "--workdir=dit", "--num_clips=1", f"--out={name}.gif", f"--npy={name}.npy", *words]) == 0
    return np.load(f"{name}.npy")


def test_captions_of_both_splits_and_the_empty_one_are_there_once(here):
    experiment = load("tiny.py")
    captions = {record.caption for split in Split for record in experiment.data.source.open(split)} | {""}
    held = experiment.data.signals["text"].embeddings()
    assert len(held) == len(captions) < 24 + 8
    assert all(caption in held for caption in captions)


def test_the_cache_holds_what_the_encoders_make(here):
    experiment = load("tiny.py")
    captions = ["", *(record.caption for record in experiment.data.source.open(Split.TRAIN))]
    encoders = TextEncoders(experiment.task.text, small_mesh())
    expected, actual = encoders(captions), experiment.data.signals["text"].embeddings()(captions)
    np.testing.assert_array_equal(actual.num_tokens, expected.num_tokens)
    for there, here_ in zip(actual, expected):
        np.testing.assert_array_equal(there, here_.astype(there.dtype))


def test_nothing_is_the_embedding_of_an_empty_caption_and_is_loaded_with_the_run(here):
    opened = open_run(Path("dit"), console=Console(file=io.StringIO()))
    empty = opened.experiment.data.signals["text"].embeddings()([""])
    jax.tree.map(np.testing.assert_array_equal, opened.frozen.null, empty)
    assert opened.experiment.data.signals["text"].digest == opened.experiment.data.signals["text"].manifest().digest


def test_a_caption_makes_the_same_clip_whether_it_was_in_the_cache_or_not(here):
    """And each text, and each negative prompt, another."""
    known = experiment_with().data.source.open(Split.TRAIN)[0].caption
    new = ["--text=an owl at night", "--negative_prompt=a mouse"]
    fresh = sampled("fresh", *new)
    others = [sampled("known", f"--text={known}"), sampled("plain", new[0]), sampled("nothing")]
    assert all(np.any(fresh != other) for other in others)
    shutil.copytree("texts", "texts_before")
    try:
        words = ["--caption=an owl at night", "--caption=a mouse"]
        assert main(["encode", "--config=tiny.py", "--only=text", *words]) == 0
        shutil.move("pipeline", "elsewhere")
        np.testing.assert_array_equal(sampled("cached", *new), fresh)
    finally:
        shutil.move("elsewhere", "pipeline")
        shutil.rmtree("texts")
        shutil.move("texts_before", "texts")


def test_without_encoders_a_new_caption_is_an_error_that_says_what_to_do(here, capfd):
    shutil.move("pipeline", "elsewhere")
    try:
        assert main(["sample", "--workdir=dit", "--text=an owl", "--out=owl.gif"]) == 1
    finally:
        shutil.move("elsewhere", "pipeline")
    said = " ".join(capfd.readouterr().err.split())
    assert "texts: has no embedding of 'an owl', and its encoders are not here" in said
    assert "--only=text --caption='an owl'" in said


def test_encoding_again_adds_what_is_missing_and_leaves_the_rest(here, capfd):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for name in ("texts", "latents") for path in Path(name).iterdir()}

    before = files()
    assert main(["encode", "--config=tiny.py"]) == 0
    assert files() == before
    num, said = len(experiment_with().data.signals["text"].embeddings()), capfd.readouterr().out
    assert f"has {num} of {num} captions" in said
    assert "latents is there already" in said
    assert main(["encode", "--config=tiny.py", "--only=latents", "--config.data.clips.flip_rate=0.5"]) == 1
    assert "latents: is there already" in " ".join(capfd.readouterr().err.split())


def test_a_cache_of_other_encoders_is_refused(here, tmp_path, capfd):
    words = ["train", "--config=tiny.py", f"--workdir={tmp_path}/other"]
    assert main([*words, "--config.task.text.t5.masked=False"]) == 1
    assert "text cache texts was not made for this experiment" in capfd.readouterr().err
    assert main([*words, "--config.task.condition.hidden_size=16"]) == 1
    assert "but embeddings in texts have (20, 12, 12)" in " ".join(capfd.readouterr().err.split())
    save_t5(tmp_path / "pipeline", kind="t5")
    models = [f"--config.task.text.t5.{x}={tmp_path}/pipeline/{y}" for x, y in {"model": "text_encoder"}.items()]
    assert main(["encode", "--config=tiny.py", "--only=text", *models]) == 1
    assert re.search(r"  made\.\S+: cache ", capfd.readouterr().err)


def test_a_run_records_of_which_embeddings_it_is(here):
    text = json.loads(Path("dit/experiment.json").read_text())["experiment"]["data"]["signals"]["text"]
    assert text["digest"] == experiment_with().data.signals["text"].manifest().digest
