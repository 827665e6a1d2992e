import dataclasses
import hashlib
import json

import pytest

from dit_video.config.components import diff, flatten, to_json
from dit_video.config.overrides import override
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.data.loader import BatchIterator
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.objective import MinSNR
from dit_video.distributed.sharding import MeshShape
from dit_video.dit.network import Remat
from dit_video.evaluation.evaluators import HeldOutError, Samples
from dit_video.experiment import _NOT_IN_FINGERPRINT, Experiment, fingerprint, from_json, load
from dit_video.nn.module import Precision
from dit_video.nn.positions import NTKAware
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW, Decay, Group

FILE = """
import dataclasses
import hashlib
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig

def get_config(arg: str = "20"):
    return Experiment(
        task=Autoencode(vae=VideoVAEConfig(channels=8)),
        data=Data(source=MovingDigits(), clips=ClipTransform(num_frames=9, size=(32, 32)), batch_size=4),
        optimizer=AdamW(),
        schedule=Schedule(num_steps=int(arg)),
    )
"""


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture(scope="module")
def experiment(denoise) -> Experiment:
    """Every kind of field there is: enums, tuples, tuples of values, optional ones with and without a value."""
    objective = dataclasses.replace(denoise.objective, weighting=MinSNR(gamma=3.0), shift=None)
    return Experiment(
        task=dataclasses.replace(denoise, objective=objective, precision=Precision.BFLOAT16),
        data=Data(
            source=MovingDigits(directory="data/digits"),
            clips=ClipTransform(num_frames=9, size=(32, 32)),
            batch_size=8,
            cache=LatentCache(directory="data/latents"),
        ),
        optimizer=AdamW(decay=Decay.COSINE, groups=(Group(prefix="blocks", learning_rate=1e-3),)),
        schedule=Schedule(num_steps=100),
        evaluators={"held_out_error": HeldOutError(every=10), "samples": Samples(every=20)},
    )


# --- load and override ---


def test_a_file_gives_an_experiment_and_its_argument_reaches_it(file):
    assert load(file).schedule.num_steps == 20
    assert load(f"{file}:30").schedule.num_steps == 30


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--config.optimizer.learning_rate=3e-4"], "optimizer.learning_rate", 3e-4),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.schedule.num_steps", "7"], "schedule.num_steps", 7),
        (["--config.seed=1", "--config.seed=2"], "seed", 2),
        (["--config.optimizer.decay=cosine"], "optimizer.decay", "cosine"),
        (["--config.data.clips.random_crop=true"], "data.clips.random_crop", True),
        (["--config.data.clips.size=(64,48)"], "data.clips.size", [64, 48]),
        (["--config.task.vae.multipliers=2,2,2"], "task.vae.multipliers", [2, 2, 2]),
        (["--config.data.source.directory=other place"], "data.source.directory", "other place"),
        (["--config.mesh.fsdp=4"], "mesh.fsdp", 4),
    ],
)
def test_words_of_the_command_line_set_fields(file, words, path, value):
    changed = load(file, words)
    actual = flatten(changed)[path]
    assert (actual, type(actual)) == (value, type(value))
    assert diff(load(file), changed).keys() == {path}


def test_a_rate_is_a_float_however_it_was_written(file):
    """So that the same experiment has the same fingerprint."""
    one, other = (load(file, [f"--config.optimizer.learning_rate={text}"]) for text in ("1", "1.0"))
    assert fingerprint(one) == fingerprint(other)


def test_optional_fields_take_values_and_none(experiment):
    path = "--config.task.codec.digest"
    named = override(experiment, [f"{path}=abc"])
    assert named.task.codec.digest == "abc"
    assert override(named, [f"{path}=None"]) == experiment


def test_components_that_may_be_absent_are_taken_out_by_none(experiment):
    words = ["--config.ema=None", "--config.data.cache=None", "--config.seed=3"]
    data = dataclasses.replace(experiment.data, cache=None)
    assert override(experiment, words) == dataclasses.replace(experiment, ema=None, data=data, seed=3)


def test_what_is_right_only_together_is_given_together(experiment):
    guided = override(experiment, ["--config.task.guidance.scale=2.0"])
    words = ["--config.task.condition=None", "--config.task.guidance.scale=1.0"]
    for order in (words, words[::-1]):
        task = override(guided, order).task
        assert (task.condition, task.guidance.scale) == (None, 1.0)
    with pytest.raises(ExperimentError, match=r"guidance\.scale=2\.0: there is no condition to be followed"):
        override(guided, words[:1])
    with pytest.raises(ExperimentError, match=r"condition\.num_classes: config\.task\.condition=None takes it out"):
        override(experiment, [*words, "--config.task.condition.num_classes=3"])


def test_evaluators_are_reached_by_their_name(experiment):
    changed = override(experiment, ["--config.evaluators.samples.every=5"])
    assert changed.evaluators == {**experiment.evaluators, "samples": Samples(every=5)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--config.optimizer.learning_rte=1",
            r"config\.optimizer\.learning_rte: AdamW .* you mean 'learning_rate'",
        ),
        ("--config.optimiser.learning_rate=1", r"config\.optimiser: Experiment .* did you mean 'optimizer'"),
        ("--config.schedule.xyz=1", r"config\.schedule\.xyz: .* it has num_steps, log_every, save_every"),
        ("--config.seed.more=1", r"config\.seed\.more: int has no such field"),
        ("--config.optimizer.learning_rate=fast", r"optimizer\.learning_rate=fast"),
        ("--config.seed=1.5", r"config\.seed=1\.5"),
        ("--config.data.clips.random_crop=perhaps", r"random_crop=perhaps"),
        ("--config.optimizer.decay=linear", r"config\.optimizer\.decay='linear': must be one of constant, cosine"),
        ("--config.data.clips.size=(64,)", r"config\.data\.clips\.size=\(64,\): must be of type tuple\[int, int\]"),
        ("--config.data.clips.size=(64,6.5)", r"size=\(64, 6\.5\): must be of type tuple\[int, int\]"),
        ("--config.optimizer.groups=critic", r"config\.optimizer\.groups=.*must be of type tuple\[.*Group"),
        ("--config.data.cache=folder", r"config\.data\.cache='folder': must be of type .*LatentCache"),
        ("--config.optimizer=5", r"config\.optimizer: is a component, AdamW; put another in its place"),
        ("--config.schedule.num_steps=0", r"Schedule\.num_steps=0: must be at least 1"),
        ("--config.num_microbatches=3", r"num_microbatches=3: must divide data\.batch_size=4"),
        ("--config.seed", r"--config\.seed: give a value"),
    ],
)
def test_what_cannot_be_set_is_named_with_a_remedy(file, word, message):
    with pytest.raises(ExperimentError, match=message):
        load(file, [word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"small\.py: defines no `get_config"),
        ("def get_config(arg=''): return 3", r"small\.py: get_config returned int, not an Experiment"),
    ],
)
def test_a_file_without_an_experiment_is_refused(tmp_path, text, message):
    (tmp_path / "small.py").write_text(text)
    with pytest.raises(ExperimentError, match=message):
        load(str(tmp_path / "small.py"))


def test_a_missing_file_is_named_beside_those_that_are_there(file, tmp_path):
    with pytest.raises(ExperimentError, match=r"smal\.py: no such file; there are .*small\.py"):
        load(str(tmp_path / "smal.py"))
    with pytest.raises(ExperimentError, match=r"nowhere/small\.py: no such file$"):
        load(str(tmp_path / "nowhere" / "small.py"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--config.faults.not_finite=skip",
            r"config\.faults\.not_finite: is a component, Stop; .*FILE\.py:arg gives it$",
        ),
        ("--config.ema=0.9", r"config\.ema: is a component, EMA; .*Of this one can be set: decay"),
        ("--config.evaluators={}", r"config\.evaluators: is a component, several by name; .*Of this one can be set: "),
        # The optimizer may not be absent.
        ("--config.optimizer=None", r"config\.optimizer: is a component, AdamW; put another in its place"),
    ],
)
def test_a_component_is_put_in_the_file_and_not_on_the_command_line(experiment, word, message):
    with pytest.raises(ExperimentError, match=message):
        override(experiment, [word])


# --- JSON ---


def test_an_experiment_survives_json(experiment):
    data = json.loads(json.dumps(to_json(experiment)))
    back = from_json(data)
    assert back == experiment
    assert back.task.network.remat is Remat.NOTHING_RECOMPUTED
    assert back.data.clips.size == (32, 32)
    assert to_json(back) == data


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "dit_videos.experiment.Experiment"])
def test_classes_of_other_packages_are_not_loaded(experiment, name):
    data = to_json(experiment)
    data["data"]["source"]["class"] = name
    with pytest.raises(ExperimentError, match=rf"experiment\.data\.source: class '{name}' is not of this package"):
        from_json(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit_video.data.sources.Radio", "this version of dit_video has no dit_video.data.sources.Radio"),
        ("dit_video.radio.Radio", "this version of dit_video has no"),
        ("dit_video.experiment.load", "this version of dit_video has no"),
        (f"{BatchIterator.__module__}.BatchIterator", "this version of dit_video has no"),
    ],
)
def test_what_is_no_component_is_not_loaded(experiment, name, message):
    data = to_json(experiment)
    data["data"]["source"] = {"class": name}
    with pytest.raises(ExperimentError, match=message):
        from_json(data)


def test_json_of_another_version_names_what_does_not_fit(experiment):
    data = to_json(experiment)
    data["optimizer"]["nesterov"] = True
    with pytest.raises(ExperimentError, match=r"experiment\.optimizer\.nesterov: AdamW has no such field"):
        from_json(data)
    data = to_json(experiment)
    data["optimizer"]["decay"] = "linear"
    with pytest.raises(ExperimentError, match=r"experiment\.optimizer\.decay='linear': must be one of"):
        from_json(data)
    with pytest.raises(ExperimentError, match="not an experiment"):
        from_json(data["optimizer"] | {"decay": "cosine"})


def test_only_plain_values_become_json():
    with pytest.raises(ExperimentError, match="numbers, strings, tuples, enums and dataclasses only"):
        to_json({"f": len})


# --- fingerprint and diff ---

SAME = [
    "mesh.fsdp=4",
    "data.num_threads=2",
    "schedule.log_every=7",
    "schedule.save_every=7",
]
OTHER = [
    "seed=1",
    "num_microbatches=2",
    "schedule.num_steps=99",
    "optimizer.learning_rate=1e-5",
    "optimizer.decay=constant",
    "ema.decay=0.5",
    "data.batch_size=16",
    "data.source.seed=1",
    "data.clips.flip_rate=0.5",
    "task.network.depth=3",
    "task.codec.digest=abc",
    "task.objective.weighting.gamma=4",
    "task.precision=float32",
    "evaluators.samples.every=5",
]


def test_the_fingerprint_sees_what_is_computed_and_not_where_or_how_often_it_is_shown(experiment):
    own = fingerprint(experiment)
    assert [w for w in SAME if fingerprint(override(experiment, [f"--config.{w}"])) != own] == []
    prints = [fingerprint(override(experiment, [f"--config.{w}"])) for w in OTHER]
    assert len({own, *prints}) == len(OTHER) + 1
    assert fingerprint(from_json(to_json(experiment))) == own


def test_the_fingerprint_sees_which_component_stands_in_a_place(experiment, autoencode):
    """Two values with the same fields are not the same thing."""
    assert fingerprint(dataclasses.replace(experiment, task=autoencode)) != fingerprint(experiment)


def test_a_field_that_came_later_changes_a_fingerprint_only_where_it_has_a_value(experiment):
    """A digest of the leaves without the field is what versions before it computed."""
    network = dataclasses.replace(experiment.task.network, extrapolation=NTKAware(trained=(1, 2, 2)))
    task = dataclasses.replace(experiment.task, network=network)
    assert fingerprint(dataclasses.replace(experiment, task=task)) != fingerprint(experiment)
    before = {k: v for k, v in flatten(experiment).items() if k != "task.network.extrapolation"}
    computed = {k: v for k, v in before.items() if not k.startswith(_NOT_IN_FINGERPRINT)}
    assert fingerprint(experiment) == hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]


def test_diff_shows_leaves_that_differ_with_both_values(experiment):
    other = dataclasses.replace(
        experiment, seed=5, mesh=MeshShape(fsdp=2), data=dataclasses.replace(experiment.data, cache=None)
    )
    assert diff(experiment, experiment) == {}
    assert diff(experiment, other) == {
        "data.cache.class": ("LatentCache", None),
        "data.cache.directory": ("data/latents", None),
        "mesh.fsdp": (1, 2),
        "seed": (0, 5),
    }


def test_a_name_that_no_word_of_the_command_line_can_reach_is_answered_with_another(experiment):
    experiment = dataclasses.replace(experiment, evaluators={"held-out error": HeldOutError(every=10)})
    with pytest.raises(ExperimentError, match=r"config\.evaluators\.held-out error: .*perhaps 'held_out_error'"):
        override(experiment, ["--config.evaluators.held-out error.every=3"])
