"""The road of docs/own_videos.md, walked as it stands there, on few small videos; then the notebook on its run.

Of the test of the notebook the kernel is missing and nothing else: cells are plain Python, run one after the other.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from sample_videos import waves

import dit_video
from dit_video.cli.main import main
from dit_video.video.encode import encode_mp4

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "from_python.ipynb"
# What makes a step of the page small enough for a test, by the command or by the experiment that it trains.
ONE_STEP = ["--config.schedule.num_steps=1", "--config.data.batch_size=8"]
SMALLER = {
    "--config=mine_vae.py": [*ONE_STEP, "--config.evaluators.reconstruction.num_clips=4"],
    "--config=mine.py": [
        *ONE_STEP,
        "--config.evaluators.samples.num_clips=4",
        "--config.task.sampler.num_steps=1",
    ],
    "evaluate": ["--num_clips=4", "--num_frames=9", "--batch_size=4", "--no_yardsticks"],
    "sample": ["--num_clips=1", "--num_steps=1"],
}


def smaller(words: list[str]) -> list[str]:
    return SMALLER.get(words[2] if words[1] == "train" else words[1], [])


def lines_of(page: str, test: str) -> list[list[str]]:
    """Words of the commands of the blocks of a page that are run by a test of this file."""
    mark = re.escape(f"<!-- run by tests/{Path(__file__).name}::{test} -->\n")
    blocks = re.findall(mark + r"```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """The folder in which a user has walked the road."""
    folder = tmp_path_factory.mktemp("road")
    for number in range(24):
        file = folder / "videos" / f"class_{number % 2}" / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_mp4(waves(number, 80, 32, 32), 10.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in lines_of((ROOT / "docs" / "own_videos.md").read_text(), test_own_videos.__name__):
            assert main([*words[1:], *smaller(words)]) == 0, words
    return folder


def test_own_videos(walked):
    assert (walked / "samples.mp4").is_file()
    assert (walked / "report.html").is_file()
    assert list((walked / "runs" / "mine" / "evaluation").glob("*_fvd_n4.json"))


def test_the_notebook(walked, monkeypatch):
    monkeypatch.chdir(walked)
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), "outputs are not kept"
            program = compile("".join(cell["source"]), NOTEBOOK.name, "exec")
            if "evaluate" not in program.co_names:  # minutes; the road above has judged this run
                exec(program, names)
    assert names["clips"].shape == (4, 9, 32, 32, 3)
    assert isinstance(names["run"], dit_video.run.opened.Run)
    assert names["real"].shape == names["made"].shape == (2, 9, 32, 32, 3)
