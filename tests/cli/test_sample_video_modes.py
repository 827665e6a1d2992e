"""What `sample` makes of a typed video with a run of random weights, and what a run refuses."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toys import small_mesh

from dit_video.cli.video_modes import Maker, pieces, task_for
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.objective import diffusion_forcing
from dit_video.diffusion.sampler import Euler
from dit_video.diffusion.scheduling_matrix import Pyramid
from dit_video.diffusion.timestep_spacing import Trailing
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.progress import Terminal
from dit_video.run.open_run import OpenRun
from dit_video.run.video_modes import Asked
from dit_video.tasks.known_frames import KnownFrames, Pattern
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.tasks.task import SamplingOptions
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.video.encode import encode_mp4

SHAPE = (5, 16, 16)
CONSOLE = Terminal()


@pytest.fixture(scope="module")
def opened(denoise, codec, tmp_path_factory) -> OpenRun:
    """A run of clips of two latent frames that knows all patterns."""
    task = dataclasses.replace(
        denoise, condition=None, known=KnownFrames(), sampler=Euler(num_steps=2, spacing=Trailing(first=0.5))
    )
    digits = MovingDigits(
        directory=str(tmp_path_factory.mktemp("modes") / "digits"), num_train=2, num_held_out=2, size=16, digit_size=10
    )
    data = Data(source=digits, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=2)
    experiment = Experiment(task=task, data=data, optimizer=AdamW(), schedule=Schedule(num_steps=1))
    definition = define(task.init)
    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    return OpenRun(Path("runs/none"), experiment, definition, params, Frozen(codec), small_mesh(), 1, True)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("typed") / "a.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    path.write_bytes(encode_mp4(frames, 8.0))
    return path


@pytest.fixture(scope="module")
def made(opened):
    """(what is asked) -> parts of two clips, all by programs that are compiled once."""
    maker = Maker(opened, [Batch()], 2, 0)
    return lambda asked: pieces(asked, opened, maker, SHAPE, CONSOLE)


def test_a_typed_video_is_extended_as_it_is_read(made, video):
    first, new = made(Asked(video=video, extend=4))
    assert first.shape == (2, 8, 16, 16, 3)
    assert new.shape == (2, 4, 16, 16, 3)
    np.testing.assert_array_equal(first[0], first[1])
    assert (new[0] != new[1]).any(), "clips differ by their noise"
    np.testing.assert_array_equal(list(made(Asked(video=video, extend=4)))[1], new)
    # A window of the same shape, with the frames that come before.
    before, last = made(Asked(video=video, extend=-1))
    assert before.shape == (2, 1, 16, 16, 3)
    np.testing.assert_array_equal(last, first)


def test_what_lies_outside_of_a_mask_is_what_the_codec_makes_of_it(made, codec, video, tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    (painted,) = made(Asked(video=video, mask=tmp_path / "mask.png"))
    assert painted.shape == (2, *SHAPE, 3)
    assert (painted[0] != painted[1]).any()
    Image.fromarray(0 * pixels).save(tmp_path / "nothing.png")
    (same,) = made(Asked(video=video, mask=tmp_path / "nothing.png"))
    frames = next(iter(made(Asked(video=video, extend=4))))[:, :5]
    rebuilt = jax.jit(lambda video: codec.decode(codec.whiten(codec.moments(video))))(frames)
    np.testing.assert_allclose(same.astype(int), rebuilt, atol=1)


def refused(task: Denoise, asked: Asked, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_for(asked, task, 5, 5, CONSOLE)


def test_a_share_that_is_missing_is_named(denoise, video):
    alone = dict.fromkeys(("one_level", "independent", *Pattern, "single"), 0.0)
    first = dataclasses.replace(denoise, known=KnownFrames(**(alone | {"first": 1.0})))
    assert task_for(Asked(video=video, extend=4), first, 5, 5, CONSOLE) == (first, False)
    refused(first, Asked(video=video, extend=-4), r"^--extend=-4: .*the last frames are known: .*\.last=0; train")
    refused(first, Asked(loop=True), r"^--loop: .*frames at both ends are known: KnownFrames.ends=0")
    refused(denoise, Asked(video=video, mask=video), r"^--mask=.*a region are known: config.task.known=None; .*region=")
    # With a level for each frame it works somehow, which is said; of cells there was none.
    forcing = dataclasses.replace(denoise, objective=diffusion_forcing(denoise.objective))
    task, warning = forcing.with_known(Pattern.LAST)
    assert task == forcing
    assert "expect less of it than of one with config.task.known.last above 0" in str(warning)
    refused(forcing, Asked(video=video, mask=video), r"a region are known")


def test_a_long_clip_is_an_extension_where_a_run_can_extend(denoise):
    mixture = dataclasses.replace(denoise, known=KnownFrames())
    assert task_for(Asked(), mixture, 5, 9, CONSOLE) == (mixture, True)
    assert task_for(Asked(), mixture, 5, 5, CONSOLE) == (mixture, False)
    assert task_for(Asked(), denoise, 5, 9, CONSOLE) == (denoise, False)


def test_the_order_of_frames_and_guidance_on_known_ones_can_be_typed(denoise):
    task = denoise.with_sampling(SamplingOptions(num_steps=8, history=1.5, steps_apart=2))
    assert task.scheduling == Pyramid(steps_apart=2)
    assert task.guidance == dataclasses.replace(denoise.guidance, history=1.5)
    assert denoise.with_sampling(SamplingOptions()) == denoise


def test_strength_is_where_the_sampler_begins(denoise, video):
    task, _ = task_for(Asked(video=video, strength=0.6), denoise, 5, 5, CONSOLE)
    assert task.sampler == dataclasses.replace(denoise.sampler, spacing=Trailing(first=0.6))
