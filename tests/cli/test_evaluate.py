"""`dit-video evaluate fvd` and `compare`: any two folders, one card, and no ranking across protocols."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from dit_video.cli.evaluate_protocol import check_stride, notes_of, settle
from dit_video.cli.main import main
from dit_video.cli.usage.evaluate import add_parser, spelled_out
from dit_video.data.transforms import ClipTransform
from dit_video.evaluation.card import read_card
from dit_video.evaluation.frechet import frechet_distance
from dit_video.evaluation.protocol import PUBLISHED
from dit_video.ingest.ingest import ingest
from dit_video.video.encode import encode_mp4

NUM_VIDEOS = 18
EXTRACTOR = """
import dataclasses
from toys import Brightness

def get_extractor(arg="1"):
    return Brightness(gain=float(arg))
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("brightness.py").write_text(EXTRACTOR)


def videos(seed: int, brightness: int = 0, num_frames: int = 16) -> np.ndarray:
    """Dark random clips, [N T 16 16 3]."""
    numbers = np.random.default_rng(seed)
    level = numbers.integers(20, 120, (NUM_VIDEOS, 1, 1, 1, 1))
    noise = numbers.integers(-20, 20, (NUM_VIDEOS, num_frames, 16, 16, 3))
    return (brightness + level + noise).astype(np.uint8)


def write(folder: str, clips: np.ndarray) -> str:
    Path(folder).mkdir()
    for i, clip in enumerate(clips):
        (Path(folder) / f"{i:02}.mp4").write_bytes(encode_mp4(clip, 10.0))
    return folder


def stored(name: str, clips: np.ndarray) -> str:
    """Clips in an array, which is read in no time."""
    np.save(f"{name}.npy", clips)
    return f"{name}.npy"


def evaluate(*words: str, code: int = 0) -> None:
    assert main(["evaluate", *words]) == code


def fvd(real: str, fake: str, *words: str, out: str = "card.json", code: int = 0) -> None:
    sides = (f"--real={real}", f"--fake={fake}", "--extractor=brightness.py", f"--out={out}")
    evaluate("fvd", *sides, *words, code=code)


def brightness(clips: np.ndarray) -> np.ndarray:
    from toys import Brightness, small_mesh

    return np.asarray(Brightness().on(small_mesh())(clips))


def test_arrays_give_the_distance_of_their_features():
    real, fake = videos(0), videos(1, brightness=40)
    fvd(stored("real", real), stored("fake", fake))
    card = read_card(Path("card.json"))
    assert card["value"] == pytest.approx(frechet_distance(brightness(fake), brightness(real)), rel=1e-6)
    assert card["metric"] == "FBD"
    assert card["protocol"]["num_clips"] == NUM_VIDEOS
    assert card["protocol"]["size"] == [16, 16]
    assert card["protocol"]["crop"] == "centre"
    assert card["subject"]["kind"] == "array"


def test_a_folder_against_itself_is_at_zero_and_against_another_is_not():
    write("a", videos(0)), write("b", videos(1, brightness=60))
    Path("a/readme.txt").write_text("made by another program")
    fvd("a", "a", out="same.json")
    fvd("a", "b", out="other.json")
    same, other = (read_card(Path(name)) for name in ("same.json", "other.json"))
    assert same["value"] == 0 < other["value"]
    assert same["protocol"] == other["protocol"]
    assert "the same clips: 18 of the 18 judged" in " ".join(same["notes"])
    assert "the same clips" not in " ".join(other["notes"])
    assert same["subject"]["skipped"].keys() == {"readme.txt"}
    assert same["companions"]["samples, frames shuffled"]["value"] > same["value"]
    assert same["references"]["real"]["num_videos"] == NUM_VIDEOS
    assert same["yardsticks"] == {}, "without training clips there is nothing to measure alike"


def test_a_card_says_which_videos_were_too_short_to_be_judged():
    """The case fvd_too_short."""
    clips = videos(0)
    write("real", clips), write("fake", clips[:9])
    for i in range(9, 18):
        (Path("fake") / f"{i:02}.mp4").write_bytes(encode_mp4(clips[i, :7], 10.0))
    fvd("real", "fake")
    card = read_card(Path("card.json"))
    assert card["protocol"]["num_clips"] == 9
    reason = "too short: 7 frames, a clip takes 16 frames"
    assert card["subject"]["skipped"] == {f"{i:02}.mp4": reason for i in range(9, 18)}
    assert card["references"]["real"]["skipped"] == {}
    assert "judged: 9 of 18 videos are left out: shorter than the 16 frames of a clip" in card["notes"]


def test_a_set_is_its_held_out_split_and_training_clips_find_copies():
    write("all", videos(0))
    ingest(["all"], "set", held_out_fraction=0.5)
    fvd("set", "set:train", "--train=set:train", out="card.json")
    card = read_card(Path("card.json"))
    assert card["subject"]["split"] == "train"
    assert card["measures"]["novelty"] == 0
    assert card["yardsticks"]["training clips, first frame held still"]["value"] > 0
    assert card["companions"]["samples against training clips"]["value"] == pytest.approx(0, abs=1e-9)
    assert Path("card_nearest.gif").is_file()


@pytest.mark.slow
def test_one_changed_byte_of_data_is_another_protocol():
    write("a", videos(0)), write("b", videos(1))
    fvd("a", "b", out="before.json")
    changed = videos(0)
    changed[3, :, :8] += 1
    (Path("a") / "03.mp4").write_bytes(encode_mp4(changed[3], 10.0))
    fvd("a", "b", out="after.json")
    before, after = (read_card(Path(name)) for name in ("before.json", "after.json"))
    assert before["protocol"]["content"] != after["protocol"]["content"]
    assert before["subject"]["content"] == after["subject"]["content"]


def test_cards_of_one_protocol_are_ranked(capsys):
    real = stored("real", videos(0))
    fvd(real, stored("near", videos(1, brightness=10)), out="near.json")
    fvd(real, stored("far", videos(2, brightness=90)), out="far.json")
    capsys.readouterr()
    evaluate("compare", "far.json", "near.json", "--json")
    assert [row["card"] for row in json.loads(capsys.readouterr().out)] == ["near.json", "far.json"]


def test_cards_that_chance_may_have_ordered_are_called_so(capsys):
    real = stored("real", videos(0))
    fvd(real, stored("one", videos(1)), out="one.json")
    fvd(real, stored("two", videos(2)), out="two.json")
    capsys.readouterr()
    evaluate("compare", "one.json", "two.json")
    assert "that other clips, as many, would move them by" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--num_clips=17"], "num_clips"),
        (["--num_frames=12"], "num_frames"),
        (["--size=12,12"], "size"),
        (["--extractor=brightness.py:2"], "gain"),
    ],
)
def test_cards_of_two_protocols_are_not_ranked(capsys, words, field):
    sides = stored("real", videos(0)), stored("fake", videos(1))
    fvd(*sides, out="a.json")
    fvd(*sides, *words, out="b.json")
    capsys.readouterr()
    evaluate("compare", "a.json", "b.json", code=1)
    captured = capsys.readouterr()
    assert "cannot be ranked" in captured.err
    assert field in captured.err
    assert "1. " not in captured.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--real=nowhere", "--fake=a"], "nowhere: no such folder"),
        (["--real=empty", "--fake=a"], "empty: empty; give a folder"),
        (["--real=a", "--fake=a", "--num_frames=8"], "FVD.num_frames=8: FVD needs at least 9"),
        (["--real=a", "--fake=a", "--num_frames=17"], "num_frames=17"),
        (["--real=a", "--fake=a", "--num_clips=99"], "num_clips=99: the records give only 18 different clips"),
        (["--real=a:train", "--fake=a"], "a:train: a is no video set and has no splits"),
        (["--real=a", "--fake=one"], "1 fake, 18 real videos that are long enough: each side needs two"),
        (["--real=a", "--fake=a", "--out=a"], "--out=a: is a folder"),
        (["--real=a", "--fake=a", "--extractor=broken.py"], "--extractor broken.py: ZeroDivisionError"),
        (["--real=a", "--fake=mixed"], "mixed: its videos have 2 sizes (16x16 (1), 32x16 (1)): give --size=H,W"),
        (["--real=a", "--fake=a", "--size=64"], "--size=64: must be height,width"),
        (["--real=a", "--fake=a", "--extractor=none.py"], "--extractor none.py: no such file"),
    ],
)
def test_what_cannot_be_judged_is_named(capsys, words, named):
    write("a", videos(0)), write("mixed", videos(0)[:1]), Path("empty").mkdir()
    write("one", videos(0)[:1]), Path("broken.py").write_text("1 / 0")
    (Path("mixed") / "tall.mp4").write_bytes(encode_mp4(np.zeros((16, 32, 16, 3), np.uint8), 10.0))
    evaluate("fvd", *words, code=1)
    assert named in " ".join(capsys.readouterr().err.split())
    assert not list(Path().glob("fvd_*.json"))


def test_samples_of_another_size_or_rate_are_measured_with_a_word_on_it():
    real = videos(0)
    fake = stored("fake", real.repeat(2, axis=2).repeat(2, axis=3))
    fvd(stored("real", real), fake, "--fake_stride=1", "--num_frames=10")
    assert "height and width" in " ".join(read_card(Path("card.json"))["notes"])
    fvd("real.npy", "real.npy", "--num_frames=8", "--stride=2", "--fake_stride=1", code=0)
    assert "frames per second" in " ".join(read_card(Path("card.json"))["notes"])


def test_an_edited_extractor_is_another_protocol_and_forgets_what_was_kept():
    real = stored("real", videos(0))
    fvd(real, real, out="before.json")
    Path("brightness.py").write_text(EXTRACTOR + "# another\n")
    fvd(real, real, out="after.json")
    before, after = (read_card(Path(name))["protocol"] for name in ("before.json", "after.json"))
    assert before.pop("extractor_file") != after.pop("extractor_file")
    assert before == after


def test_json_is_all_that_goes_to_stdout(capsys):
    fvd(stored("a", videos(0)), stored("b", videos(1)), "--json")
    assert json.loads(capsys.readouterr().out) == read_card(Path("card.json"))


def test_a_run_needs_no_further_word():
    assert spelled_out(["evaluate", "--workdir=r"]) == ["evaluate", "run", "--workdir=r"]
    others = ["sample", "--workdir", "evaluate", "--label=3"], ["evaluate", "--help"], ["evaluate"], ["train", "--x"]
    for words in (["evaluate", "run", "--workdir=r"], *others):
        assert spelled_out(words) == words


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *words])


SIDES = ("--real=a", "--fake=b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_protocol_sets_every_option_that_decides_a_value(name):
    fvd, run = options("fvd", *SIDES, f"--protocol={name}"), options("run", "--workdir=r", f"--protocol={name}")
    published, fields = PUBLISHED[name], PUBLISHED[name].fields()
    for arguments in (fvd, run):
        settle(arguments, num_clips=2048)
        for field in ("num_clips", "num_frames", "resize"):
            assert getattr(arguments, field) == fields[field]
    assert fvd.stride == published.stride
    assert notes_of(run) == [f"{name}: {line}" for line in published.otherwise]
    check_stride(run, ClipTransform(num_frames=16, stride=published.stride))
    with pytest.raises(ValueError, match=rf"--config.data.clips.stride={published.stride}"):
        check_stride(run, ClipTransform(num_frames=16, stride=5))


def test_without_a_protocol_options_are_the_usual_ones():
    arguments = options("fvd", *SIDES, "--num_frames=9")
    settle(arguments, num_clips=None)
    assert notes_of(arguments) == []
    found = arguments.num_clips, arguments.num_frames, arguments.resize, arguments.stride
    assert found == (None, 9, "tf1", 1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--num_clips=32", "--num_clips=32: stylegan-v has 2048; leave it or --protocol out"),
        ("--resize=tf1", "--resize=tf1: stylegan-v has half_pixel"),
        ("--stride=2", "--stride=2: stylegan-v has 1"),
        ("--clip_fps=8", "--clip_fps=8.0: is no part of --protocol=stylegan-v"),
    ],
)
def test_an_option_against_a_protocol_is_refused_with_both_values(word, message):
    with pytest.raises(ValueError, match=message):
        settle(options("fvd", *SIDES, "--protocol=stylegan-v", word), num_clips=None)
