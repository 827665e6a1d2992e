"""The digit classifier of tools/read_digits.py: its scores, control sets and cache."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from dit_video.data.dataset import Data
from dit_video.data.record import NO_LABEL, Split
from dit_video.data.sources import MovingDigits, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.nn.module import define, params_of
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import Function, Task

FILE = Path(__file__).parents[2] / "tools" / "read_digits.py"
SPEC = importlib.util.spec_from_file_location("read_digits", FILE)
read_digits = sys.modules["read_digits"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(read_digits)

QUIET = Console(quiet=True)
# One size and one width, so that all tests share what is compiled.
SIZE, WIDTHS = (16, 16), (8,)
LESSONS = read_digits.Lessons(widths=WIDTHS, num_steps=60, batch_size=32, learning_rate=1e-2, required=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    folder = tmp_path_factory.mktemp("digits") / "moving"
    sizes = {"size": SIZE[0], "digit_size": 14, "num_frames": 2}
    source = MovingDigits(directory=str(folder), num_train=160, num_held_out=60, **sizes)
    return Data(source=source, clips=ClipTransform(num_frames=2, size=SIZE), batch_size=20)


@pytest.mark.parametrize(
    ("num_right", "num_clips", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_the_published_ones(num_right, num_clips, low, high):
    assert read_digits.wilson(num_right, num_clips) == pytest.approx((low, high), abs=5e-5)


def test_a_clip_is_read_by_the_mean_over_its_frames():
    read = jax.jit(read_digits.Reader(SIZE, WIDTHS, rngs=nnx.Rngs(0)))
    video = np.random.default_rng(0).integers(0, 256, (2, 3, *SIZE, 3), np.uint8)
    frames = read(video.reshape(6, 1, *SIZE, 3)).reshape(2, 3, 10)
    np.testing.assert_allclose(read(video), frames.mean(1), atol=1e-5)


def test_a_reader_learns_is_kept_and_is_the_same_when_loaded(data):
    learnt = read_digits.reader_of(data, LESSONS, QUIET)
    assert learnt.held_out.num_clips == 60
    assert learnt.held_out.accuracy >= LESSONS.required
    loaded = read_digits.reader_of(data, LESSONS, QUIET)
    assert loaded.held_out.confusion.tolist() == learnt.held_out.confusion.tolist()
    again = loaded.score(read_digits.real_clips(data, Split.HELD_OUT, QUIET))
    assert again.confusion.tolist() == learnt.held_out.confusion.tolist()

    (file,) = Path(data.source.directory).parent.glob("moving-reader-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged; delete it"):
        read_digits.reader_of(data, LESSONS, QUIET)


def test_a_reader_that_cannot_read_is_refused_and_not_kept(data):
    lazy = dataclasses.replace(LESSONS, num_steps=2, required=0.95)
    kept = set(Path(data.source.directory).parent.iterdir())
    with pytest.raises(ValueError, match=r"of 60 held-out clips, 95% are required"):
        read_digits.reader_of(data, lazy, QUIET)
    assert set(Path(data.source.directory).parent.iterdir()) == kept


def test_other_videos_than_digits_are_refused():
    other = Data(source=VideoSet(directory="x"), clips=ClipTransform(), batch_size=1)
    with pytest.raises(ValueError, match="source is a VideoSet"):
        read_digits.reader_of(other, LESSONS, QUIET)


class Painter(Task):
    """A task that paints the label it is told, and the clip's key, as grey values."""

    def init(self, rng):
        return nnx.Linear(1, 1, rngs=nnx.Rngs(rng))

    def loss(self, model, frozen, batch, rng, step):
        return jnp.zeros(()), {}

    def functions(self):
        return {"generate": Function(self.generate, Video)}

    def generate(self, model, frozen, batch, rngs, shape):
        label = jnp.where(batch.signals["label"] == NO_LABEL, 255, batch.signals["label"]).astype(jnp.uint8)
        noise = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint8))(rngs)
        video = jnp.stack([label, noise, noise], -1)[:, None, None, None]
        return jnp.broadcast_to(video, (len(label), *shape, 3))


@pytest.fixture(scope="module")
def painter() -> Subject:
    task = Painter()
    params = params_of(task.init(jax.random.key(0)))
    subject = Subject(task, define(task.init), None, make_mesh(MeshShape()), {})
    return subject.with_weights(params, step=0, ema=True)


def generated(painter, num_clips, *, with_labels):
    """Label painted, noise painted and label wanted of every real row."""
    labels = np.arange(num_clips, dtype=np.int32) % 10
    batches = read_digits.generations(painter, labels, (1, 2, 2), seed=3, with_labels=with_labels)
    rows = [(video[:n, 0, 0, 0, 0], video[:n, 0, 0, 0, 1], label[:n]) for video, label, n in batches]
    return [np.concatenate(column) for column in zip(*rows)]


def test_generated_clips_are_balanced_and_none_is_counted_twice(painter):
    assert 40 % read_digits.BATCH_SIZE != 0  # the last batch is filled up with rows that do not count
    painted, _, expected = generated(painter, 40, with_labels=True)
    assert painted.tolist() == expected.tolist()
    assert np.bincount(expected).tolist() == [4] * 10


def test_withholding_labels_changes_the_condition_alone(painter):
    _, noise, expected = generated(painter, 20, with_labels=True)
    painted, same_noise, same_expected = generated(painter, 20, with_labels=False)
    assert set(painted.tolist()) == {255}
    assert noise.tolist() == same_noise.tolist()
    assert expected.tolist() == same_expected.tolist()
    assert len(set(noise.tolist())) > 10


def test_the_confusion_matrix_counts_every_real_row_once():
    # Without weights but one bias, a reader sees a seven everywhere.
    definition = define(lambda rng: read_digits.Reader(SIZE, WIDTHS, rngs=nnx.Rngs(rng)))
    params = {name: jnp.zeros(shape.shape) for name, shape in definition.shapes.items()}
    params["head.bias"] = jnp.asarray(np.eye(10, dtype=np.float32)[7])
    empty = read_digits.Score(np.zeros((10, 10), int))
    reader = read_digits.Learnt(definition, params, empty, 0.0)
    video = np.zeros((6, 1, *SIZE, 3), np.uint8)
    score = reader.score([(video, np.array([7, 7, 1, 2, 3, 4]), 6), (video, np.array([7, 1, 1, 1, 1, 1]), 2)])
    assert (score.num_clips, score.num_right) == (8, 3)
    assert score.confusion[:, 7].tolist() == [0, 2, 1, 1, 1, 0, 0, 3, 0, 0]
    assert score.confusion.sum() == 8
    assert score.as_json()["accuracy"] == 3 / 8
