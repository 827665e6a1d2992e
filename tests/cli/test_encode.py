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
    text = TextCache(directory="texts") if "cache" in arg else None
    encoders = wan_text("nowhere") if "encoders" in arg else None
    task = dataclasses.replace(SMALL_DENOISE, text=encoders)
    return dataclasses.replace(experiment, task=task, data=dataclasses.replace(experiment.data, cache=None, text=text))
"""


@pytest.mark.parametrize(
    ("arg", "words", "message"),
    [
        ("", [], "config.data.cache and config.data.text are None"),
        ("", ["--only=latents"], "config.data.cache is None"),
        ("", ["--only=text"], "config.data.text: names no text cache"),
        ("cache", [], "config.task.text: names no encoders"),
        ("", ["--only=latents", "--caption=a fox"], "--caption='a fox': this writes no embeddings"),
        ("cache", ["--config.data.text.directory=gs://b/x"], "config.data.text.directory=gs://b/x: is written here"),
        ("cache,encoders", [], "config.task.text.t5.model='nowhere/text_encoder': is no folder"),
    ],
)
def test_what_is_missing_is_named(arg, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    assert main(["encode", f"--config=tiny.py:{arg}", *words]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "texts").exists()
