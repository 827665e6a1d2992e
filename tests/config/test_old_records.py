"""Records of format 2, whose DiTConfig was two networks: each is read as the class that it is now."""

import dataclasses
import json

import pytest
from toys import SMALL_DENOISE, untrained

from dit_video import experiment as experiments
from dit_video.config import components
from dit_video.config.json_file import read_object, write_json
from dit_video.config.names import FORMAT
from dit_video.config.old_records import condition_and_channels, upgrade
from dit_video.config.user_file import ExperimentError
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig, PublishedDiTConfig
from dit_video.dit.network import Remat
from dit_video.nn.attention import QKNorm
from dit_video.nn.mlp import MLPKind
from dit_video.nn.norm import Norm
from dit_video.run import folder as run_folder

SIZE = {"hidden_size": 24, "depth": 2, "num_heads": 2}
# As to_json of format 2 wrote them, every field of every network.
MODERN = {
    "class": "DiTConfig",
    **SIZE,
    "patch_size": [1, 2, 2],
    "remat": "none",
    "mlp_ratio": 4.0,
    "shared_modulation": False,
    "positions": "rotary",
    "position_grid": None,
    "norm": "rms",
    "qk_norm": "per_head",
    "mlp": "swiglu",
    "mlp_norm_epsilon": 1e-6,
    "timestep_offset": 0,
    "time_frequency_shift": 0,
    "learned_variance": False,
}
PUBLISHED = MODERN | {
    "positions": "sincos",
    "norm": "layer",
    "qk_norm": "none",
    "mlp": "gelu",
    "timestep_offset": -1,
    "learned_variance": True,
}
THEN_AND_NOW = {
    "modern": (MODERN, DiTConfig(**SIZE)),
    "modern, all choices": (
        MODERN
        | {"shared_modulation": True, "norm": "layer", "qk_norm": "across_heads", "mlp": "gelu", "remat": "dots"}
        | {"learned_variance": True, "mlp_ratio": 1.0, "patch_size": [2, 1, 1]},
        DiTConfig(
            **SIZE,
            patch_size=(2, 1, 1),
            remat=Remat.DOTS,
            mlp_ratio=1.0,
            shared_modulation=True,
            norm=Norm.LAYER,
            qk_norm=QKNorm.ACROSS_HEADS,
            mlp=MLPKind.GELU,
            learned_variance=True,
        ),
    ),
    "official code": (PUBLISHED | {"position_grid": 16}, PublishedDiTConfig(**SIZE, position_grid=16)),
    "diffusers": (
        PUBLISHED | {"mlp_norm_epsilon": 1e-5, "time_frequency_shift": 1, "learned_variance": False},
        PublishedDiTConfig(**SIZE, mlp_norm_epsilon=1e-5, time_frequency_shift=1, learned_variance=False),
    ),
}
CASES = pytest.mark.parametrize(("then", "now"), THEN_AND_NOW.values(), ids=THEN_AND_NOW)


@CASES
def test_a_dit_of_then_is_the_same_network(then, now):
    assert components.from_json({"format": 2, **then}, "network") == now
    # Parts of exports have no version, and format 1 has classes by their addresses.
    assert components.from_json(then, "network") == now
    assert components.from_json(then | {"class": "dit_video.dit.dit.DiTConfig"}, "network") == now
    assert components.from_json(components.record(now), "network") == now


@CASES
def test_records_of_today_stay_as_they_are(then, now):
    written = json.loads(json.dumps(components.to_json(now)))
    assert upgrade(written) == written
    assert upgrade(then)["class"] == type(now).__name__


@CASES
def test_a_run_of_then_is_resumed_as_the_same_experiment(then, now, tmp_path):
    task = dataclasses.replace(SMALL_DENOISE, network=now, condition=ClassCondition(num_classes=3))
    experiment = untrained(task)
    recorded = json.loads(json.dumps(components.record(experiment)))
    assert recorded["format"] == FORMAT
    recorded |= {"format": 2, "task": recorded["task"] | {"network": then}}
    write_json(tmp_path / "experiment.json", {"fingerprint": "that of then", "experiment": recorded})
    assert run_folder.read_experiment(tmp_path) == experiment
    run_folder.record(experiment, tmp_path, (), allow_change=False)
    written = read_object(tmp_path / "experiment.json")
    assert written["experiment"]["format"] == FORMAT
    assert written["fingerprint"] == experiments.fingerprint(experiment)
    longer = dataclasses.replace(task, network=dataclasses.replace(now, depth=3))
    with pytest.raises(ExperimentError, match=r"task\.network\.depth: 2 -> 3"):
        run_folder.record(dataclasses.replace(experiment, task=longer), tmp_path, (), allow_change=False)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (MODERN | {"timestep_offset": -1}, "timestep_offset=-1: .* positions=rotary is a DiTConfig .* is 0;"),
        (MODERN | {"time_frequency_shift": 1}, "time_frequency_shift=1: "),
        (MODERN | {"mlp_norm_epsilon": 1e-5}, "mlp_norm_epsilon=1e-05: "),
        (PUBLISHED | {"norm": "rms"}, "norm='rms': .* positions=sincos is a PublishedDiTConfig .* is layer;"),
        (PUBLISHED | {"qk_norm": "per_head"}, "qk_norm='per_head': "),
        (PUBLISHED | {"mlp": "swiglu"}, "mlp='swiglu': "),
        (PUBLISHED | {"timestep_offset": 0}, "timestep_offset=0: "),
        (PUBLISHED | {"shared_modulation": True}, "shared_modulation=True: "),
        (MODERN | {"positions": "learned"}, "positions='learned': "),
        (MODERN | {"positions": "table"}, "positions='table': .* positions=rotary is a DiTConfig "),
    ],
)
def test_a_combination_that_is_no_network_any_more_is_an_error_that_names_field_and_remedy(then, message):
    with pytest.raises(ExperimentError, match=r"^experiment\.task\.network\." + message) as error:
        components.from_json({"format": 2, "class": "Experiment", "task": {"network": then}}, "experiment")
    assert "read this record with the dit_video that wrote it" in str(error.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(DiTConfig):
    hidden_size: int = 24
    window: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NarrowAsPublished(PublishedDiTConfig):
    hidden_size: int = 24


@pytest.mark.parametrize(
    ("then", "now"),
    [(MODERN | {"window": 5}, Narrow(**SIZE, window=5)), (PUBLISHED, NarrowAsPublished(**SIZE))],
)
def test_a_class_of_the_users_own_that_is_a_dit_reads_its_record(then, now):
    own = components.own_classes(now)
    assert components.from_json({"format": 2} | then | {"class": f"{__name__}.{type(now).__name__}"}, "x", own) == now


def test_what_was_known_of_a_clip_then_is_one_field_now():
    """Format 1 held a first frame by a flag, or by a condition of its own; the oldest records say nothing of it."""
    task = {"class": "dit_video.tasks.denoise.Denoise"}
    at_zero = {"class": "FirstFrame", "shown": {"class": "LevelZero"}}
    for fields, known in (({}, None), ({"hold_first_frame": False}, None), ({"hold_first_frame": True}, at_zero)):
        assert upgrade(task | fields) == {"class": "Denoise", "known": known}
    label = {"class": "dit_video.dit.condition.ClassCondition", "num_classes": 3}
    labelled = {"class": "Denoise", "condition": {"class": "ClassCondition", "num_classes": 3}, "known": None}
    assert upgrade(task | {"condition": label}) == labelled
    text = {"class": "dit_video.dit.condition.EmbeddedText", "num_tokens": 3}
    framed = {"class": "dit_video.dit.first_frame.FirstFrame", "text": text, "mask_channels": 4, "image_size": None}
    assert upgrade(task | {"condition": framed, "hold_first_frame": False}) == {
        "class": "Denoise",
        "condition": {"class": "EmbeddedText", "num_tokens": 3},
        "known": {
            "class": "FirstFrame",
            "shown": {"class": "AsChannels", "mask_channels": 4, "image_size": None},
        },
    }


def test_a_condition_of_then_is_a_condition_and_channels():
    text = {"class": "dit_video.dit.condition.EmbeddedText", "num_tokens": 3}
    framed = {"class": "dit_video.dit.first_frame.FirstFrame", "text": text, "grey_frames": False}
    today = {"class": "EmbeddedText", "num_tokens": 3}
    assert condition_and_channels(framed) == (today, {"class": "AsChannels", "grey_frames": False})
    assert condition_and_channels(text) == condition_and_channels(today) == (today, None)


def test_labels_and_captions_of_then_are_signals_now():
    data = {"class": "dit_video.data.dataset.Data"}
    label = {"label": {"class": "ClassLabel"}}
    assert upgrade(data) == {"class": "Data", "signals": label}
    assert upgrade(data | {"caption_bytes": None, "text": None}) == {"class": "Data", "signals": label}
    assert upgrade(data | {"caption_bytes": 9, "text": {"a": 1}}) == {
        "class": "Data",
        "signals": label | {"caption": {"class": "CaptionBytes", "num_bytes": 9}, "text": {"a": 1}},
    }


def test_fields_that_a_record_lacks_are_those_of_then():
    """Both networks had one class, and so one value for each field that a record left out."""
    free = {
        "shared_modulation": False,
        "norm": "rms",
        "qk_norm": "per_head",
        "mlp": "swiglu",
        "learned_variance": False,
    }
    assert upgrade({"class": "DiTConfig", "positions": "rotary"}) == {"class": "DiTConfig", **free}
    fixed = {"positions": "sincos", "norm": "layer", "qk_norm": "none", "mlp": "gelu", "timestep_offset": -1}
    assert upgrade({"class": "DiTConfig", **fixed}) == {
        "class": "PublishedDiTConfig",
        "position_grid": None,
        "mlp_norm_epsilon": 1e-6,
        "time_frequency_shift": 0,
        "learned_variance": False,
    }
