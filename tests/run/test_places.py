"""The paths of a run's record lead to the same files from any folder, and after a move of all of them together."""

import dataclasses
import os
from pathlib import Path

import pytest
from trained_by_processes import get_config

from dit_video.config.json_file import read_object, write_json
from dit_video.config.paths import with_paths
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.experiment import Experiment, fingerprint, read
from dit_video.run.folder import EXPERIMENT_FILE, record
from dit_video.run.places import located


def experiment(directory: str, cache: str = "latents") -> Experiment:
    data = dataclasses.replace(
        get_config().data, source=VideoSet(directory=directory), cache=LatentCache(directory=cache)
    )
    return dataclasses.replace(get_config(), data=data)


def found(run: Path) -> list[str]:
    """Where the set and the cache of a run are looked for from here."""
    data = located(read(run / EXPERIMENT_FILE, get_config()), run / EXPERIMENT_FILE).data
    return [data.source.directory, data.cache.directory]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with data and a run that was started in it."""
    folder = tmp_path / "home"
    for name in ("data/set", "latents", "runs/dit"):
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    record(experiment("data/set"), Path("runs/dit"), [], allow_change=False)
    return folder


def test_where_a_run_was_started_its_paths_are_as_they_were_written(home):
    assert found(Path("runs/dit")) == found(home / "runs" / "dit") == ["data/set", "latents"]


@pytest.mark.parametrize("moved", [False, True])
def test_from_any_folder_and_after_a_move_they_are_the_same(home, monkeypatch, moved):
    if moved:
        home = home.rename(home.parent / "elsewhere")
    # Others of the same names that lie where a command is given are not meant.
    for name in ("data/set", "latents"):
        (home.parent / name).mkdir(parents=True)
    monkeypatch.chdir(home.parent)
    paths = [str(home / "data" / "set"), str(home / "latents")]
    assert found(home / "runs" / "dit") == found(Path(home.name) / "runs" / "dit") == paths
    monkeypatch.chdir(home / "runs")
    assert found(Path("dit")) == paths


def test_a_run_that_was_moved_alone_finds_what_stayed(home, monkeypatch):
    run = (home / "runs" / "dit").rename(home.parent / "dit")
    monkeypatch.chdir(home.parent)
    assert found(run) == [str(home / "data" / "set"), str(home / "latents")]


def test_whole_paths_are_moved_too_and_what_is_nowhere_stays(home, monkeypatch):
    record(experiment(str(home / "data" / "set"), "gone"), home / "runs" / "other", [], allow_change=False)
    assert found(home / "runs" / "other") == [str(home / "data" / "set"), "gone"]
    new = home.rename(home.parent / "elsewhere")
    monkeypatch.chdir(new.parent)
    assert found(new / "runs" / "other") == [str(new / "data" / "set"), "gone"]


def test_the_record_and_its_fingerprint_know_nothing_of_it(home):
    content = read_object(home / "runs" / "dit" / EXPERIMENT_FILE)
    assert content["experiment"]["data"]["source"]["directory"] == "data/set"
    assert content["fingerprint"] == fingerprint(experiment("data/set"))
    assert content["places"] == {"started_in": str(home), "run": str(home / "runs" / "dit")}


@pytest.mark.parametrize("places", [None, "x", {"started_in": 1}, {"run": "/x"}])
def test_a_record_of_before_or_of_a_stranger_is_taken_as_it_is_written(home, monkeypatch, places):
    path = home / "runs" / "dit" / EXPERIMENT_FILE
    write_json(path, {**read_object(path), "places": places})
    monkeypatch.chdir(home.parent)
    assert found(home / "runs" / "dit") == ["data/set", "latents"]


def test_values_that_have_no_path_that_moves_stay_the_same_objects():
    value = experiment("data/set")
    assert with_paths(value, lambda path: path) is value
    moved = with_paths(value, lambda path: f"/x/{path}")
    assert (moved.data.source.directory, moved.data.cache.directory) == ("/x/data/set", "/x/latents")
    assert moved.task is value.task
    assert os.path.isabs(moved.data.source.directory)
