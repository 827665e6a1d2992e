"""What `encode` cannot write, it says before it opens anything."""

import pytest

from dit_video.cli.main import main

EXPERIMENT = """
import dataclasses
from toys import SMALL_DENOISE, untrained
from dit_video.data.text_cache import TextCache
from dit_video.dit.condition import EmbeddedText
from dit_video.encoders.text import wan_text

def get_config(arg=""):
    experiment = untrained(SMALL_DENOISE)
    signals = {"text": TextCache(directory="texts")} if "cache" in arg else {}
    encoders = wan_text("nowhere") if "encoders" in arg else None
    task = dataclasses.replace(SMALL_DENOISE, text=encoders)
    data = dataclasses.replace(experiment.data, cache=None, signals=signals)
    return dataclasses.replace(experiment, task=task, data=data)
"""


@pytest.mark.parametrize(
    ("arg", "words", "message"),
    [
        ("", [], "config.data.cache is None and config.data.signals has no text cache"),
        ("", ["--only=latents"], "config.data.cache is None"),
        ("", ["--only=text"], "config.data.signals.text: names no text cache"),
        ("cache", [], "config.task.text: names no encoders"),
        ("", ["--only=latents", "--caption=a fox"], "--caption='a fox': this writes no embeddings"),
        (
            "cache",
            ["--config.data.signals.text.directory=gs://b/x"],
            "config.data.signals.text.directory=gs://b/x: is written here",
        ),
        ("cache,encoders", [], "config.task.text.t5.model='nowhere/text_encoder': is no folder"),
    ],
)
def test_what_is_missing_is_named(arg, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    assert main(["encode", f"--config=tiny.py:{arg}", *words]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "texts").exists()
