"""A run of text goes through the ordinary commands: trained, gone on with, judged, sampled, exported, split, killed."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from dit_video.cli.main import main
from dit_video.distributed.sharding import MeshShape
from dit_video.distributed.targets import parse_target
from dit_video.evaluation.card import read_card
from dit_video.experiment import load
from dit_video.plan.compile import plan
from dit_video.plan.programs import TaskFunction
from dit_video.training.tracker import read_record
from dit_video.verify.sharding import compare_shardings

# Minutes of compiling.
pytestmark = pytest.mark.slow

KINDS = ("masked", "block", "autoregressive")
EXPERIMENT = """
import dataclasses
from dit_video.data.dataset import Data
from dit_video.data.sources import TextSet
from dit_video.diffusion.unmasking import Spread, Unmasking
from dit_video.dit.text_transformer import TextTransformerConfig
from dit_video.experiment import Experiment
from dit_video.tasks.factorization import Autoregressive, Blocks, Masked
from dit_video.tasks.text import LanguageModel
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW

KINDS = {"masked": Masked(), "block": Blocks(size=8), "autoregressive": Autoregressive()}

def get_config(arg="masked"):
    network = TextTransformerConfig(hidden_size=16, depth=1, num_heads=2)
    return Experiment(
        task=LanguageModel(network=network, factorization=KINDS[arg], sampler=Unmasking(order=Spread(tokens=4))),
        data=Data.of_text(TextSet(directory="set", length=32, align=8), batch_size=8),
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Schedule(num_steps=6, log_every=1, save_every=3),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text set, and a run of each kind."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tiny.py").write_text(EXPERIMENT)
    (folder / "book.txt").write_text("".join(f"line {n}: the cat sat on mat {n * n}\n" for n in range(400)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data", "text", "book.txt", "--out=set", "--held_out_fraction=0.3"]) == 0
        for kind in KINDS:
            assert main(["train", f"--config=tiny.py:{kind}", f"--workdir={kind}"]) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_checkpoint_exactly(kind, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    words = [f"--config=tiny.py:{kind}", "--workdir=again"]
    assert main(["train", *words, "--config.schedule.num_steps=3"]) == 0
    assert main(["train", *words, "--allow_change"]) == 0
    losses = [[line["loss"] for line in read_record(Path(run)) if "loss" in line] for run in (kind, "again")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_judged_inspected_and_exported(kind, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "run", f"--workdir={kind}", "--num_clips=16", "--batch_size=8"]) == 0
    (path,) = Path(kind, "evaluation").glob("*.json")
    card = read_card(path)
    assert card["metric"] == "bits per byte of held-out text"
    assert 0 < card["value"] < 9
    assert card["protocol"]["length"] == 32
    assert card["sampled text"]["notes"], "an untrained run fails guards"
    assert main(["inspect", kind, "--verify"]) == 0
    assert main(["export", f"--workdir={kind}", f"--out={kind}_exported", "--format=safetensors"]) == 0
    assert "tensors bit-equal" in capsys.readouterr().out


def test_samples_are_judged_by_another_run_and_other_judges_are_another_scale(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert main(["train", "--config=tiny.py:autoregressive", "--workdir=other", "--config.seed=1"]) == 0
    words = ["evaluate", "run", "--num_clips=16", "--batch_size=8"]
    cards = []
    for run, judge in (("masked", "autoregressive"), ("block", "autoregressive"), ("masked", "other")):
        assert main([*words, f"--workdir={run}", f"--judge={judge}"]) == 0
        (path,) = Path(run, "evaluation").glob("*under_an_autoregressive_run*.json")
        cards.append(str(path.rename(f"{run}_{judge}.json")))
        card = read_card(Path(cards[-1]))
        assert 0 < card["value"] < 20
        assert card["references"]["judge"]["run"] == judge
        assert any("guard failed" in note for note in card["notes"])
    capsys.readouterr()
    assert main(["evaluate", "compare", *cards[:2]]) == 0
    assert main(["evaluate", "compare", cards[0], cards[2]]) == 1
    assert "differ in judge" in capsys.readouterr().err
    assert main([*words, "--workdir=masked", "--judge=block"]) == 1
    assert "is no run of Autoregressive() text" in " ".join(capsys.readouterr().err.split())


def test_prompts_stay_gaps_are_filled_and_each_pass_is_shown(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for kind in KINDS:
        words = [f"--workdir={kind}", "--num_clips=2", f"--out={kind}.jsonl"]
        assert main(["sample", *words, "--prompt=The [1]", "--length=40"]) == 0
        texts = [json.loads(line)["text"] for line in Path(f"{kind}.jsonl").read_text().splitlines()]
        assert [text[:7] for text in texts] == ["The [1]"] * 2
    capsys.readouterr()
    words = ["--infill=a [8] z.", "--num_clips=1", "--out=a.txt", "--show"]
    assert main(["sample", "--workdir=masked", *words]) == 0
    shown = capsys.readouterr().out
    assert "after 0 of 2 passes" in shown
    assert Path("a.txt").read_bytes().startswith(b"a ")
    assert Path("a.txt").read_bytes().endswith(b" z.\n")
    assert main(["sample", "--workdir=autoregressive", *words]) == 1
    assert "left to right" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_same_on_eight_devices_and_is_planned(kind, folder, monkeypatch):
    monkeypatch.chdir(folder)
    experiment = load(f"tiny.py:{kind}")
    for shape in (MeshShape(data=2, fsdp=2, tensor=2), MeshShape(data=2, context=4)):
        comparison = next(compare_shardings(experiment, [shape], num_steps=2))
        assert comparison.refused is None
        assert comparison.equal, comparison
    assert len(jax.devices()) == 8
    for name in ("likelihood", "generate", "refine"):
        assert plan(experiment, parse_target("cpu:8"), TaskFunction(name)).flops > 0


def test_killing_it_loses_nothing(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["verify-resume", "--config=tiny.py:block", "--kills=2", "--num_steps=12", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["difference"] is None
    assert len(verdict["kills"]) <= 2
    assert verdict["num_arrays"] > 0
