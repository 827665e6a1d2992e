"""Names in records: what once stood in a record can be read for ever."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from dit_video.config.names import MODULES
from dit_video.config.old_records import ADDRESSES, upgrade
from dit_video.config.user_file import ExperimentError
from dit_video.experiment import from_json

# One name a line, in the order of the alphabet: a line may be added, none may go.
NAMES = (Path(__file__).parent / "names.txt").read_text().split()


def test_no_name_disappears_and_every_new_one_is_written_down():
    assert sorted(MODULES) == NAMES, "add new names to names.txt; a class that is renamed keeps its old one"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_a_component(name):
    kind = getattr(importlib.import_module(MODULES[name]), name)
    assert dataclasses.is_dataclass(kind)
    assert kind.__module__ == MODULES[name], "the table says where a class is defined, not where it is imported"


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_name_folders_are_known_as_paths(name):
    """So that none is forgotten where ~ is expanded and where a run was moved."""
    kind = getattr(importlib.import_module(MODULES[name]), name)
    texts = {field.name for field in dataclasses.fields(kind) if field.type is str}
    assert texts & {"directory", "data_dir", "run", "model", "tokenizer", "folder", "path", "file"} == set(
        getattr(kind, "PATHS", ())
    )


def test_every_address_of_old_records_leads_to_a_name_of_today():
    assert set(ADDRESSES.values()) <= set(NAMES)


def test_values_of_before_are_read_field_by_field():
    old = {
        "class": "dit_video.tasks.denoise.Denoise",
        "condition": {
            "class": "dit_video.dit.first_frame.FirstFrame",
            "drop_rate": 0.0,
            "text": {"class": "dit_video.dit.condition.TextCondition", "depth": 1},
            "mask_channels": 4,
            "grey_frames": False,
            "image_size": None,
        },
        "hold_first_frame": False,
    }
    assert upgrade(old) == {
        "class": "Denoise",
        "condition": {"class": "TextCondition", "depth": 1},
        "known": {
            "class": "FirstFrame",
            "shown": {"class": "AsChannels", "mask_channels": 4, "grey_frames": False, "image_size": None},
        },
    }
    assert upgrade({"class": "dit_video.data.dataset.Data", "caption_bytes": 9, "text": None}) == {
        "class": "Data",
        "signals": {"label": {"class": "ClassLabel"}, "caption": {"class": "CaptionBytes", "num_bytes": 9}},
    }


def test_a_record_of_a_newer_version_says_so():
    with pytest.raises(ExperimentError, match="is of format 4, this version of dit_video reads 3 and before"):
        from_json({"class": "Experiment", "format": 4})
