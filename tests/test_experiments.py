"""Every experiment loads without touching data or a device, is shown, and survives its own record."""

import subprocess
import sys
from pathlib import Path

import pytest

from dit_video import experiment as experiments
from dit_video.cli.new import experiment_file
from dit_video.config.components import to_json
from dit_video.run import workload
from dit_video.run.checks import check_fields
from dit_video.tasks.known_frames import Pattern

ROOT = Path(__file__).parent.parent
RUNS = (
    "experiments/any_frames.py",
    "experiments/any_frames.py:region",
    "experiments/captions.py",
    "experiments/image.py",
    "experiments/quickstart.py:vae",
    "experiments/quickstart.py:dit",
    "experiments/grid_vae.py",
    "experiments/grid_vae.py:128",
    "experiments/grid_dit.py",
    "experiments/grid_dit.py:128",
    "experiments/grid_any_frames.py:tiny",
    "experiments/text.py:masked",
    "experiments/text.py:block",
    "experiments/text.py:autoregressive",
    "experiments/video_1b.py",
    "experiments/video_1b.py:vae",
    "experiments/video_1b.py:tiny",
    "experiments/video_1b.py:tiny_vae",
    "experiments/video_14b.py",
    "experiments/video_14b.py:tiny",
    "experiments/world_300m.py",
    "experiments/world_300m.py:vae",
    "experiments/world_corridor.py",
    "experiments/world_corridor.py:teacher",
    "experiments/world_corridor.py:vae",
)


def test_every_experiment_file_is_listed_here():
    listed = {name.partition(":")[0] for name in RUNS}
    assert listed == {str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("*.py")}


@pytest.fixture(params=RUNS)
def experiment(request) -> experiments.Experiment:
    return experiments.load(str(ROOT / request.param))


def test_an_experiment_survives_its_record(experiment):
    again = experiments.from_json(to_json(experiment))
    assert again == experiment
    assert experiments.fingerprint(again) == experiments.fingerprint(experiment)


def test_the_command_line_reaches_every_evaluator(experiment):
    assert all(name.isidentifier() for name in experiment.evaluators)


def test_the_file_that_is_written_of_an_experiment_is_that_experiment(experiment, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(experiment_file(experiment, file, "there"))
    again = experiments.load(f"{file}")
    assert again == experiment
    assert experiments.fingerprint(again) == experiments.fingerprint(experiment)


def test_clips_fit_the_networks(experiment):
    check_fields(experiment)
    assert workload.step_flops(experiment) > 0


def test_clips_of_many_shapes_with_anything_known_survive_their_record():
    """Its shapes have no batch sizes yet, which count FLOPs of all; `tests/run/test_batch_shapes.py` has that law."""
    mixed = experiments.load(str(ROOT / "experiments/video_1b.py:mixed"))
    assert len(mixed.data.shapes) == 8
    assert mixed.task.known.patterns == frozenset(Pattern)
    assert experiments.from_json(to_json(mixed)) == mixed


@pytest.mark.slow
def test_show_works_where_there_is_no_data_and_no_codec(tmp_path):
    command = [sys.executable, "-m", "dit_video", "show", f"--config={ROOT}/experiments/quickstart.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "config.task.network.hidden_size" in result.stdout
    assert "FLOPs of a training step" in result.stdout
    assert not list(tmp_path.iterdir()), "show must write nothing"
