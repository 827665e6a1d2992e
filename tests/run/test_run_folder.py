"""A run goes on with the data that it was started with, or says what is different."""

import dataclasses
import json
from pathlib import Path

import pytest
from trained_by_processes import Noise, get_config

from dit_video.checkpoint.identity import Identity
from dit_video.config.json_file import write_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.record import Split
from dit_video.data.sources import SourceInfo
from dit_video.experiment import fingerprint
from dit_video.run.folder import EXPERIMENT_FILE, check_data, data_changes, identity, record, record_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set(Noise):
    """A source of as many records as it is told; a set with other numbers has other digests."""

    num_train: int = 4000
    num_held_out: int = 500
    class_names: tuple[str, ...] = ("run", "jump")

    def info(self) -> SourceInfo:
        numbers = {Split.TRAIN: self.num_train, Split.HELD_OUT: self.num_held_out}
        return SourceInfo(
            class_names=self.class_names,
            num_records=numbers,
            digest=f"{self.num_train:04d}{self.num_held_out:04d}abcd",
            split_digest={split: f"{number:08d}0000" for split, number in numbers.items()},
        )


def of(source: Set) -> dict:
    return dataclasses.replace(get_config().data, source=source).identity()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run that was started with the set as it is by default."""
    write_json(tmp_path / EXPERIMENT_FILE, {"fingerprint": "0123"})
    record_data(of(Set()), tmp_path, 0)
    return tmp_path


def test_the_same_data_are_nothing_to_speak_of(folder):
    before = (folder / EXPERIMENT_FILE).read_bytes()
    check_data(of(Set()), folder, allow_change=False)
    record_data(of(Set()), folder, 30)
    assert (folder / EXPERIMENT_FILE).read_bytes() == before
    assert data_changes(folder) == []


def test_other_data_are_refused_with_what_changed_and_what_that_means(folder):
    with pytest.raises(ExperimentError) as refused:
        check_data(of(Set(num_train=4200)), folder, allow_change=False)
    for part in (
        "was started with other data:",
        "config.data.source: 4000 train (00004000), 500 held_out (00000500), manifest 40000500 -> 4200 train",
        "from the next batch on, batches are others",
        "held-out videos are unchanged: scores before and after can be compared",
        "--allow_data_change",
    ):
        assert part in str(refused.value)
    with pytest.raises(ExperimentError, match=r"held-out videos are others: scores .* cannot be compared"):
        check_data(of(Set(num_held_out=400)), folder, allow_change=False)


def test_a_change_that_is_allowed_is_written_down(folder):
    for batch, number in ((30, 4200), (50, 4400)):
        check_data(of(Set(num_train=number)), folder, allow_change=True)
        record_data(of(Set(num_train=number)), folder, batch)
        check_data(of(Set(num_train=number)), folder, allow_change=False)
    changes = data_changes(folder)
    assert [change["batch"] for change in changes] == [30, 50]
    numbers = [[change[side]["source"]["num_records"]["train"] for side in ("old", "new")] for change in changes]
    assert numbers == [[4000, 4200], [4200, 4400]]
    assert json.loads((folder / EXPERIMENT_FILE).read_text())["fingerprint"] == "0123"


@pytest.mark.parametrize("allowed", [False, True])
def test_other_classes_are_always_refused(folder, allowed):
    with pytest.raises(ExperimentError, match=r"label would mean another class(.|\n)*another --workdir"):
        check_data(of(Set(class_names=("fall", "run", "jump"))), folder, allow_change=allowed)


def test_a_run_of_before_data_were_recorded_takes_any_and_records_them(tmp_path):
    write_json(tmp_path / EXPERIMENT_FILE, {"fingerprint": "0123"})
    check_data(of(Set()), tmp_path, allow_change=False)
    record_data(of(Set()), tmp_path, 10)
    assert data_changes(tmp_path) == []
    with pytest.raises(ExperimentError, match="other data"):
        check_data(of(Set(num_train=1)), tmp_path, allow_change=False)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"data": 5}, "data=5: must be an object"),
        ({"data": {"source": {}}}, "has no cache"),
        ({"data": {"source": {}, "cache": None}}, "has no digest"),
        ({"data_changes": 5}, "data_changes=5: must be a list"),
        ({"data_changes": [5]}, "data_changes: holds 5, not an object"),
        ({"data_changes": [{"batch": 1.5}]}, "batch=1.5: must be a whole number"),
        ({"data_changes": [{"batch": 3, "old": None}]}, "data=None: must be an object"),
    ],
)
def test_a_damaged_record_of_data_says_what_to_do(folder, damage, named):
    """F13: it was a traceback at every start."""
    path = folder / EXPERIMENT_FILE
    good = json.loads(path.read_text())
    write_json(path, good | damage)
    for read in (
        lambda: check_data(of(Set()), folder, allow_change=True),
        lambda: record_data(of(Set()), folder, 30),
        lambda: data_changes(folder),
    ):
        with pytest.raises(ExperimentError, match=rf"{EXPERIMENT_FILE}: damaged: {named}.* or take data and"):
            read()
    write_json(path, {"fingerprint": good["fingerprint"]})
    check_data(of(Set()), folder, allow_change=False)


@pytest.mark.parametrize("name", ["digest", "split_digest", "num_records", "class_names"])
def test_every_part_of_the_identity_of_data_has_its_type(folder, name):
    content = json.loads((folder / EXPERIMENT_FILE).read_text())
    for value in (None, 5, ["x", 5], {"train": None}):
        content["data"]["source"][name] = value
        write_json(folder / EXPERIMENT_FILE, content)
        with pytest.raises(ExperimentError, match=r"damaged: .*: must be "):
            check_data(of(Set()), folder, allow_change=False)


def test_a_run_has_one_name_and_every_fingerprint_that_its_experiment_had(tmp_path):
    experiment = get_config()
    record(experiment, tmp_path, (), allow_change=False)
    first = identity(tmp_path, lambda: None)
    assert first == identity(tmp_path, lambda: "another") == Identity(first.run_id, fingerprint(experiment))
    other = dataclasses.replace(experiment, seed=experiment.seed + 1)
    record(other, tmp_path, (), allow_change=True)
    changed = Identity(first.run_id, fingerprint(other), (fingerprint(experiment),))
    assert identity(tmp_path, lambda: None) == changed
    record(other, tmp_path, (), allow_change=False)
    assert identity(tmp_path, lambda: None) == changed
    record(experiment, tmp_path, (), allow_change=True)
    back = Identity(first.run_id, fingerprint(experiment), (fingerprint(other),))
    assert identity(tmp_path, lambda: None) == back


def test_a_folder_without_a_record_has_the_name_that_its_checkpoints_have(tmp_path):
    record(get_config(), tmp_path, (), allow_change=False)
    assert identity(tmp_path, lambda: "brought here").run_id == "brought here"
    assert identity(tmp_path, lambda: None).run_id == "brought here"
