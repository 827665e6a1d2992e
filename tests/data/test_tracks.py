"""Laws of tracks: an action belongs to the frame that it led to, and comes back from a set and a cache as it was."""

import dataclasses
import hashlib

import numpy as np
import pytest

from dit_video.data.batch import collate
from dit_video.data.dataset import Data
from dit_video.data.inventory import take_inventory
from dit_video.data.latent_cache import CachedExamples, write_latent_cache
from dit_video.data.record import Clip, Record, Split, content_digest
from dit_video.data.signals import ACTION, Actions, open_all
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.data.tracks import Tracks, TrackSpace
from dit_video.data.transforms import ClipTransform
from dit_video.data.video_set import Entry, Manifest, read_manifest, write_video_set
from dit_video.video.actions import ActionSpace
from dit_video.video.encode import encode_mp4

KEYS = ActionSpace(names=("noop", "brighter", "darker"))
WHEEL = ActionSpace(names=("angle", "speed"), continuous=True)
T = 12


def brightness(actions: np.ndarray) -> np.ndarray:
    """A world whose frame is a known function of what was pressed before it: 20 brighter, or 20 darker."""
    return 120 + 20 * np.cumsum(np.select([actions == 1, actions == 2], [1, -1], 0))


def write(folder, space: TrackSpace, tracks: list[Tracks], videos=None) -> Manifest:
    videos = videos or [np.zeros((T, 8, 8, 3), np.uint8)] * len(tracks)
    content = [encode_mp4(video, 10.0) for video in videos]
    folder.mkdir()
    entries = tuple(
        Entry(
            file=f"{n}.mp4", source="x", sha256=hashlib.sha256(data).hexdigest(), split=Split.TRAIN, frames=T, fps=10.0,
            width=8, height=8, stored="encoded", num_bytes=len(data), tracks_sha256=space.sha256(tracks[n]),
        )
        for n, data in enumerate(content)
    )  # fmt: skip
    manifest = Manifest(settings={"made_by": "hand"}, class_names=(), entries=entries, tracks=space)
    return write_video_set(
        folder,
        manifest,
        lambda entry: content[int(entry.file[0])],
        shard_size=1 << 20,
        on_record=lambda done, total: None,
        load_tracks=lambda entry: tracks[int(entry.file[0])],
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A set of two videos of the world of `brightness`, and its actions by key."""
    rng = np.random.default_rng(0)
    actions = [np.concatenate([[-1], rng.integers(0, 3, T - 1)]).astype(np.int32) for _ in range(2)]
    videos = [np.broadcast_to(brightness(a)[:, None, None, None], (T, 8, 8, 3)).astype(np.uint8) for a in actions]
    folder = tmp_path_factory.mktemp("world") / "set"
    write(folder, TrackSpace(actions=KEYS), [Tracks(a) for a in actions], videos)
    return str(folder), {f"{n}.mp4": a for n, a in enumerate(actions)}


def test_the_action_of_a_frame_is_what_was_pressed_between_the_frame_before_and_it(world):
    """Of every clip, wherever it is cut, each frame follows from the one before and its own action; a shift by one
    does not.
    """
    source, right, shifted = VideoSet(directory=world[0]), 0, 0
    data = Data(
        source=source,
        clips=ClipTransform(num_frames=5, size=(8, 8)),
        batch_size=8,
        signals={ACTION: Actions(names=KEYS.names, num_frames=5)},
    )
    batch = next(data.train(seed=0, start=0))
    actions = batch.signals[ACTION]
    assert (actions.shape, actions.dtype) == ((8, 5), np.int32)
    light = batch.video.astype(float).mean((2, 3, 4))
    for row, acted in zip(np.diff(light), actions):
        right += (np.abs(row - np.diff(brightness(acted))) < 5).all()
        shifted += (np.abs(row - np.diff(brightness(np.roll(acted, -1)))) < 5).all()
    assert right == 8
    assert shifted < 4


def test_actions_of_a_set_come_back_as_they_were(world):
    folder, actions = world
    examples = VideoSet(directory=folder).open(Split.TRAIN)
    assert {record.key: record.actions.tolist() for record in examples} == {k: a.tolist() for k, a in actions.items()}
    assert VideoSet(directory=folder).info().actions == KEYS
    assert read_manifest(folder, remedy="").tracks == TrackSpace(actions=KEYS)


def test_continuous_actions_and_poses_lose_nothing(tmp_path):
    rng = np.random.default_rng(1)
    acted = rng.standard_normal((T, 2)).astype(np.float32)
    acted[0] = np.nan
    poses = rng.standard_normal((T, 3)).astype(np.float32)
    space = TrackSpace(actions=WHEEL, pose=("x", "y", "angle"))
    write(tmp_path / "set", space, [Tracks(acted, poses)])
    record = VideoSet(directory=str(tmp_path / "set")).open(Split.TRAIN)[0]
    np.testing.assert_array_equal(record.actions, acted)
    np.testing.assert_array_equal(record.poses, poses)
    clip = ClipTransform(num_frames=4, size=(8, 8)).at(record, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(clip.actions, acted[3:7])
    np.testing.assert_array_equal(clip.poses, poses[3:7])
    batch = collate([clip], open_all({ACTION: Actions(size=2, num_frames=4)}))
    assert (batch.signals[ACTION].shape, batch.signals[ACTION].dtype) == ((1, 4, 2), np.float32)


def test_digests_change_with_an_action(tmp_path):
    one = np.zeros(T, np.int32)
    other = one.copy()
    other[5] = 1
    space = TrackSpace(actions=KEYS)
    digests = set()
    for name, actions in (("a", one), ("b", other), ("c", one.copy())):
        manifest = write(tmp_path / name, space, [Tracks(actions)])
        examples = VideoSet(directory=str(tmp_path / name)).open(Split.TRAIN)
        digests.add((manifest.split_digest(Split.TRAIN), content_digest(examples, [0])))
    assert len({of_manifest for of_manifest, _ in digests}) == len({of_bytes for _, of_bytes in digests}) == 2


def test_a_latent_cache_has_the_actions_of_its_clips(tmp_path):
    moments = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2)
    acted, poses = np.array([-1, 2, 1], np.int32), np.ones((3, 3), np.float32)
    wheel = np.full((3, 2), 0.25, np.float32)
    clips = [
        Clip(key="k", start=4, moments=moments, fps=8.0, actions=acted, poses=poses),
        Clip(key="w", start=0, moments=moments, fps=8.0, actions=wheel),
    ]
    splits = {Split.TRAIN: clips}
    write_latent_cache(tmp_path / "c", splits, class_names=(), split_digests={}, provenance={}, actions=KEYS)
    keys, wheels = CachedExamples(tmp_path / "c", Split.TRAIN)
    np.testing.assert_array_equal(keys.actions, acted)
    np.testing.assert_array_equal(keys.poses, poses)
    np.testing.assert_array_equal(keys.moments, moments)
    np.testing.assert_array_equal(wheels.actions, wheel)
    assert wheels.poses is None
    assert LatentCache(directory=str(tmp_path / "c")).info().actions == KEYS
    clip = ClipTransform(num_frames=3)(keys, np.random.default_rng(0))
    assert collate([clip], open_all({ACTION: Actions(names=KEYS.names, num_frames=3)})).signals[ACTION].tolist() == [
        [-1, 2, 1]
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_frames": 4}, "num_frames=5, but clips.num_frames=4"), ({"stride": 2}, "stride=2, fps=None"),
        ({"fps": 8.0}, "fps=8.0"), ({"flip_rate": 0.5}, "flip_rate=0.5"),
    ],
)  # fmt: skip
def test_clips_that_lose_what_actions_mean_are_refused(world, change, named):
    clips = dataclasses.replace(ClipTransform(num_frames=5, size=(8, 8)), **change)
    with pytest.raises(ValueError, match=f"Data.signals.action: .*{named}"):
        Data(
            source=VideoSet(directory=world[0]),
            clips=clips,
            batch_size=1,
            signals={ACTION: Actions(names=KEYS.names, num_frames=5)},
        )


def test_a_stride_keeps_the_actions_between_its_frames(world):
    """A clip has them all, and a signal of one action a frame refuses it."""
    record = VideoSet(directory=world[0]).open(Split.TRAIN)[0]
    clip = ClipTransform(num_frames=3, stride=2, size=(8, 8)).at(record, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(clip.actions, record.actions[1:6])
    with pytest.raises(ValueError, match="5 actions of a clip of 3 frames"):
        Actions(names=KEYS.names, num_frames=3).open()([clip])


@pytest.mark.parametrize(
    ("signal", "there", "named"),
    [
        (Actions(names=KEYS.names, num_frames=5), None, "have no actions"),
        (Actions(names=("a", "b"), num_frames=5), KEYS, r"names=\('a', 'b'\), but .* 3 actions: noop"),
        (Actions(size=3, num_frames=5), WHEEL, "size=3, but .* 2 numbers: angle, speed"),
        (Actions(size=3, num_frames=5), KEYS, "size=3, but"),
        (Actions(names=KEYS.names, num_frames=5), WHEEL, "2 numbers"),
    ],
)
def test_what_the_data_do_not_have_is_named(world, signal, there, named):
    examples = VideoSet(directory=world[0]).open(Split.TRAIN)
    inventory = take_inventory(examples, ClipTransform(num_frames=5), (), there)
    with pytest.raises(ValueError, match=named):
        signal.check_data(inventory)


def test_actions_are_typed_by_name():
    signal = Actions(names=KEYS.names, num_frames=6)
    typed = signal.parse("brighter*2, darker", tuple, print)
    assert typed.tolist() == [[-1, 1, 1, 2, -1, -1]]
    assert signal.example(2).tolist() == [[-1] * 6] * 2
    assert np.isnan(Actions(size=2, num_frames=3).example(1)).all()
    for word, named in (("brighter*6", "6 actions, but a clip of 6"), ("up", "'up' is no action"), ("noop*x", "noop")):
        with pytest.raises(ValueError, match=named):
            signal.parse(word, tuple, print)
    for wrong in ({"num_frames": 3}, {"names": ("a",), "size": 1, "num_frames": 3}):
        with pytest.raises(ValueError, match="give one of them"):
            Actions(**wrong)


def test_a_record_has_one_action_of_each_frame():
    video = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="3 actions of 4 frames"):
        Record(key="k", video=video, num_frames=4, fps=8.0, actions=np.zeros(3, np.int32))
