"""verify-resume: a killed and resumed run equals an undisturbed one, and a difference is detected."""

import json
import os
import sys
from pathlib import Path

import pytest

from dit_video.verify.resume import Verdict, compare_runs, verify_resume

# Minutes of real processes.
pytestmark = pytest.mark.slow

EXPERIMENT = """
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.evaluation.evaluators import Reconstruction
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig

def get_config(arg=""):
    source = MovingDigits(directory="digits", num_train=24, num_held_out=8, size=16, num_frames=9, digit_size=10)
    return Experiment(
        task=Autoencode(vae=VideoVAEConfig(channels=8, multipliers=(1,), strides=((4, 8, 8),), num_blocks=1,
                                           num_decoder_blocks=1, latent_channels=4)),
        data=Data(source=source, clips=ClipTransform(num_frames=9, size=(16, 16)), batch_size=4, num_threads=2),
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Schedule(num_steps=200, log_every=1, save_every=20),
        evaluators={"reconstruction": Reconstruction(every=100, num_clips=4, batch_size=4, num_shown=1)},
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Verdict]:
    """Two kills, the first of them inside a save."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "tiny.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1")
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        command = [sys.executable, "-m", "dit_video", "train", "--config=tiny.py"]
        return folder, verify_resume(command, folder / "runs", num_kills=2, num_steps=200)


def test_killed_twice_it_is_bit_for_bit_the_same(trained):
    _, verdict = trained
    assert verdict.difference is None
    assert [kill.inside_save for kill in verdict.kills][:1] == [True]
    assert len(verdict.kills) == 2
    assert verdict.num_lines == 202
    assert verdict.num_arrays > 50


def test_one_number_of_another_value_is_found_and_named(trained, tmp_path):
    folder, _ = trained
    one, other = folder / "runs" / "undisturbed", folder / "runs" / "killed"
    record = other / "metrics.jsonl"
    lines = record.read_text().splitlines()
    index = next(i for i, text in enumerate(lines) if json.loads(text)["step"] == 7)
    changed = json.loads(lines[index])
    changed["loss"] += 1e-7
    record.write_text("\n".join([*lines[:index], json.dumps(changed), *lines[index + 1 :]]) + "\n")
    difference, _, _ = compare_runs(one, other)
    record.write_text("\n".join(lines) + "\n")
    assert difference is not None
    assert difference.startswith('metrics: {"step": 7, ')
    assert compare_runs(one, other)[0] is None
