"""A run begins at step 0 where it has saved nothing, keeps what it had recorded, and never where its saves are gone."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console
from trained_by_processes import get_config
from training_processes import EXPERIMENT, finish, start, steps, until_step

from dit_video.checkpoint.folder import DAMAGED_FOLDER, FOLDER, UNFINISHED
from dit_video.cli.main import main
from dit_video.config.user_file import ExperimentError
from dit_video.experiment import Experiment
from dit_video.run.folder import AllowedChanges
from dit_video.run.fresh_start import EARLIER, CheckpointsGone, check_not_gone, keep_earlier_record, saves_on_record
from dit_video.run.train import train
from dit_video.training.intervals import Schedule


def of_steps(num_steps: int) -> Experiment:
    return dataclasses.replace(get_config(), schedule=Schedule(num_steps=num_steps, save_every=2), evaluators={})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of four steps, saved at 2 and 4."""
    folder = tmp_path_factory.mktemp("fresh") / "run"
    train(of_steps(4), folder, console=Console(quiet=True))
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def empty(folder: Path) -> None:
    shutil.rmtree(folder / FOLDER)
    (folder / FOLDER).mkdir()


def half_written_alone(folder: Path) -> None:
    empty(folder)
    (folder / FOLDER / "6.orbax-checkpoint-tmp").mkdir()


def set_aside(folder: Path) -> None:
    """All good ones were set aside, as by an older version that took a store that failed for damage."""
    (folder / "saves.jsonl").unlink()
    (folder / DAMAGED_FOLDER).mkdir()
    (folder / FOLDER / "4").rename(folder / DAMAGED_FOLDER / "4")
    (folder / DAMAGED_FOLDER / "4.json").write_text('{"why": "its metadata cannot be read", "found": "today"}')
    empty(folder)


def judged(folder: Path) -> None:
    """A card of `evaluate` is of weights that were saved."""
    (folder / "saves.jsonl").unlink()
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "step_0000004_ema_fvd_n256.json").write_text("{}")
    shutil.rmtree(folder / FOLDER)


@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (lambda folder: shutil.rmtree(folder / FOLDER), "2 in saves.jsonl, the last of step 4. There: no step in"),
        (empty, "2 in saves.jsonl, the last of step 4"),
        (half_written_alone, "There: 6.orbax-checkpoint-tmp (half-written)"),
        (set_aside, "checkpoints_damaged/4, set aside (its metadata cannot be read)"),
        (judged, "evaluation/step_0000004_ema_fvd_n256.json, of step 4"),
    ],
)
def test_where_saves_are_on_record_and_gone_training_is_refused_and_nothing_is_touched(run, lose, said):
    lose(run)
    before = files(run)
    with pytest.raises(CheckpointsGone) as refused:
        train(of_steps(6), run, allow=AllowedChanges(experiment=True), console=Console(quiet=True))
    assert said in str(refused.value)
    assert f"to begin anew at step 0, type: mv {run} {run}.old" in str(refused.value)
    assert {name: content for name, content in files(run).items() if name != "lock.json"} == before


def test_a_link_to_what_is_not_mounted_is_refused_and_nothing_is_made_there(run, tmp_path):
    (run / FOLDER).rename(tmp_path / "elsewhere")
    (run / FOLDER).symlink_to(tmp_path / "elsewhere")
    check_not_gone(run, print)
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"checkpoints is a link to .*elsewhere, which is not there; mount it"):
        train(of_steps(4), run, console=Console(quiet=True))
    assert not (tmp_path / "elsewhere").exists()


def test_one_step_that_is_left_is_enough(run):
    shutil.rmtree(run / FOLDER / "4")
    check_not_gone(run, print)


def test_failed_and_half_written_saves_are_no_saves(tmp_path):
    (tmp_path / "saves.jsonl").write_text('{"step": 2, "failed": "no space"}\n{"st')
    (tmp_path / DAMAGED_FOLDER / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / DAMAGED_FOLDER / "2.orbax-checkpoint-tmp.json").write_text(json.dumps({"why": UNFINISHED}))
    assert saves_on_record(tmp_path) == []
    check_not_gone(tmp_path, print)


@pytest.mark.parametrize("step", range(1, 5))
def test_the_record_of_a_start_without_a_save_is_kept_whole(tmp_path, step):
    """Killed at every step before the first save, and again at the next start."""
    assert keep_earlier_record(tmp_path) is None
    for number in (1, 2):
        lines = "".join(json.dumps({"step": s, "loss": number / s}) + "\n" for s in range(1, step + 1)) + '{"step": '
        (tmp_path / "metrics.jsonl").write_text(lines)
        (tmp_path / "events.jsonl").write_text("{}\n")
        said = keep_earlier_record(tmp_path)
        assert f"ended at step {step}, before its first save was complete: it starts again from step 0" in said
        assert str(tmp_path / EARLIER / str(number)) in said
        assert (tmp_path / EARLIER / str(number) / "metrics.jsonl").read_text() == lines
        assert not (tmp_path / "metrics.jsonl").exists()
        assert keep_earlier_record(tmp_path) is None


def test_a_run_without_a_save_starts_again_and_says_so(run, trained, capsys):
    """To the same record, and with what it had recorded kept."""
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / FOLDER)
    (run / "saves.jsonl").unlink()
    train(of_steps(4), run, console=Console(width=1000))
    assert "the run ended at step 4, before its first save was complete" in capsys.readouterr().out
    assert steps(run) == steps(trained)
    assert (run / EARLIER / "1" / "metrics.jsonl").read_text() == before


def test_fewer_steps_than_the_run_has_are_refused(run):
    """The same command would never come to its end, so it must not say that it goes on."""
    options = {"allow": AllowedChanges(experiment=True), "console": Console(quiet=True)}
    with pytest.raises(ExperimentError, match=r"config.schedule.num_steps=3: the run is at step 4 already"):
        train(of_steps(3), run, **options)
    assert train(of_steps(4), run, **options).finished


def test_a_path_that_is_a_pattern_is_refused_at_the_start(tmp_path, capsys):
    (tmp_path / "tokens.py").write_text(EXPERIMENT)
    for name in ("a[b]", "every*", "what?"):
        command = ["train", f"--config={tmp_path / 'tokens.py'}", f"--workdir={tmp_path / name / 'run'}"]
        assert main(command) == 1
        assert "stands for a pattern to Orbax" in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_real_processes_killed_at_every_step_before_the_first_save_start_again(tmp_path):
    (tmp_path / "tokens.py").write_text(EXPERIMENT)
    options = ("--config.schedule.save_every=6", "--config.schedule.log_every=1")
    finish(start(tmp_path, "reference", *options), 0)
    for step in range(1, 6):
        (killed,) = start(tmp_path, "killed", *options, SECONDS_PER_RECORD="0.05")
        while step > 1 and not (tmp_path / "killed" / EARLIER / str(step - 1)).exists():
            time.sleep(0.02)
        until_step(tmp_path / "killed", step)
        killed.kill()
        killed.communicate()
    (said,) = finish(start(tmp_path, "killed", *options), 0)
    assert "before its first save was complete: it starts again from step 0" in said
    assert steps(tmp_path / "killed") == steps(tmp_path / "reference")
    kept = [steps(folder) for folder in sorted((tmp_path / "killed" / EARLIER).iterdir())]
    assert len(kept) == 5
    for losses in kept:
        assert losses.items() <= steps(tmp_path / "reference").items()
