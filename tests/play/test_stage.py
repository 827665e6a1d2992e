"""Laws of play: a recording holds all that decides its frames, and the true world goes where the actions lead."""

import gymnasium
import numpy as np
import pytest
from dreams import SIZE, Perfect, recorded
from gymnasium.utils.env_checker import check_env

from dit_video.cli.play import replay
from dit_video.data.record import Split
from dit_video.play.recording import Replay, read_recording
from dit_video.play.stage import Stage
from dit_video.play.stream import Start, Starts, of_picture
from dit_video.play.world_env import WorldEnv
from dit_video.progress import Terminal
from dit_video.video.decode import decode
from dit_video.worlds.corridor import ACTIONS, TURN_RIGHT, Corridor

BLACK = Start(name="black", frames=np.zeros((2, SIZE, SIZE, 3), np.uint8), actions=np.array([-1, 0], np.int32))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("play") / "set")


@pytest.fixture(scope="module")
def starts(data):
    return Starts(data, frames_per_step=1)


def played(tmp_path, actions):
    stage = Stage(Perfect(), ACTIONS)
    stage.reset(BLACK, seed=3)
    shown = [frame for action in actions for frame in stage.step(action)]
    stage.stream.num_steps = 2
    shown += stage.step(0)
    return shown, stage.save(tmp_path)


def test_a_recording_is_replayed_bit_for_bit(tmp_path):
    actions = np.random.default_rng(0).integers(0, 5, 40).tolist()
    shown, path = played(tmp_path, actions)
    recording = read_recording(path.with_suffix(".npz"))
    assert recording.actions.tolist() == [*actions, 0]
    assert recording.num_steps.tolist() == [4] * 40 + [2]
    again = Replay(Perfect(), recording)
    frames = np.concatenate(list(again))
    assert again.digest == recording.digest
    np.testing.assert_array_equal(frames, np.concatenate([BLACK.frames, [s.dream for s in shown]]))
    assert len(decode(path.read_bytes())[0]) == 43
    assert [s.number for s in shown] == list(range(1, 42))


def test_another_world_is_no_replay(tmp_path, capsys):
    _, path = played(tmp_path, [1, 3, 4])
    console, recording = Terminal(), read_recording(path.with_suffix(".npz"))
    assert replay(Perfect(), recording, tmp_path / "a" / "again.mp4", console) == 0
    assert "bit-equal" in capsys.readouterr().out
    other = Perfect()
    other.world = Corridor(size=SIZE, num_cells=11)
    assert replay(other, recording, tmp_path / "b.mp4", console) == 1
    assert "not what was played" in capsys.readouterr().out


def test_recordings_are_numbered_and_nothing_is_recorded_of_nothing(tmp_path):
    assert [played(tmp_path, [1])[1].name for _ in range(2)] == ["play_0001.mp4", "play_0002.mp4"]
    stage = Stage(Perfect(), ACTIONS)
    with pytest.raises(ValueError, match="nothing has begun"):
        stage.step(0)
    stage.reset(BLACK)
    with pytest.raises(ValueError, match="nothing has been played"):
        stage.save(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY"])
def test_what_is_no_recording_is_named(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: no recording"):
        read_recording(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", frames=np.zeros(3))
    with pytest.raises(ValueError, match="has no format, name"):
        read_recording(tmp_path / "y.npz")


def test_the_true_world_stands_where_the_known_frames_end_and_goes_on_with_them(starts):
    """Of every held-out clip: its last known frame is the true world's, but for H.264; then both go the same way."""
    stage = Stage(Perfect(), starts.actions, true_world=starts.true_world(), repeat=starts.repeat)
    assert starts.actions == ACTIONS
    for number in range(len(starts)):
        start = starts.at(number)
        shown = stage.reset(start)
        assert len(start.frames) == len(start.actions) == 4
        assert np.abs(shown.true.astype(float) - start.frames[-1]).mean() < 12
        seed, actions = start.episode
        world = Corridor(size=SIZE)
        world.reset(seed)
        for action in [*actions, TURN_RIGHT]:
            expected = world.step(int(action)).frame
        np.testing.assert_array_equal(stage.step(TURN_RIGHT)[0].true, expected)


def test_a_stream_begins_with_held_out_clips(data, starts):
    keys = {entry.file for entry in data.source.manifest().stored(Split.HELD_OUT)}
    assert {starts.at(number).name for number in range(len(starts))} == keys


def test_a_picture_of_any_size_is_a_beginning():
    start = of_picture(np.full((50, 90, 3), 77, np.uint8), (SIZE, SIZE))
    assert start.frames.shape == (1, SIZE, SIZE, 3)
    assert (start.frames == 77).all()
    assert Stage(Perfect(), ACTIONS).reset(start).true is None


def test_a_world_is_an_environment_of_gymnasium(starts):
    env = WorldEnv(Perfect(), starts, max_steps=3)
    check_env(env, skip_render_check=True)
    episodes = []
    for _ in range(2):
        first, info = env.reset(seed=5)
        steps = [env.step(action) for action in (1, 2, 3)]
        episodes.append(np.stack([first, *(step[0] for step in steps)]))
        assert [step[3] for step in steps] == [False, False, True]
    np.testing.assert_array_equal(*episodes)
    assert env.reset(options={"clip": 0})[1]["clip"] == starts.at(0).name
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    assert info["clip"].endswith(".mp4")
