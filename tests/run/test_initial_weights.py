"""--init_from: what changes the function of the network is refused with both values; what does not, passes."""

import dataclasses
from pathlib import Path

import pytest
from toys import SMALL_DENOISE, SMALL_VAE, TWO_LEVEL_VAE, untrained

from dit_video import (
    AsChannels,
    Autoencode,
    AutoencodeLoss,
    ClassCondition,
    Denoise,
    Euler,
    FirstFrame,
    Guidance,
    LevelZero,
    Norm,
    Precision,
    PublishedDiTConfig,
    QKNorm,
    Remat,
    Task,
    TextCondition,
    WanConfig,
    ddpm,
)
from dit_video.config.user_file import ExperimentError
from dit_video.run.folder import record
from dit_video.run.initial_weights import source_of_weights

PUBLISHED = PublishedDiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1), learned_variance=False)
WAN = WanConfig(hidden_size=32, depth=2, num_heads=2, mlp_width=64, patch_size=(1, 1, 1), text_length=8)
TEXT = TextCondition(hidden_size=8, depth=1, num_heads=2)


def denoise(network=SMALL_DENOISE.network, **fields) -> Denoise:
    return dataclasses.replace(SMALL_DENOISE, network=network, **fields)


def network(base=SMALL_DENOISE.network, **fields) -> Denoise:
    return denoise(dataclasses.replace(base, **fields))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a task from a run of another; returns what is said."""
    monkeypatch.chdir(tmp_path)

    def begin(theirs: Task, ours: Task, *, allow_change: bool = False) -> str:
        record(untrained(theirs), Path("run"), [], allow_change=True)
        said: list[str] = []
        folder = source_of_weights(Path("run"), untrained(ours), allow_change=allow_change, warn=said.append)
        assert folder == Path("run")
        return "\n".join(said)

    return begin


@pytest.mark.parametrize(
    ("theirs", "ours", "field", "there", "here"),
    [
        (denoise(PUBLISHED), network(PUBLISHED, time_frequency_shift=1), "network.time_frequency_shift", "0", "1"),
        (denoise(), network(norm=Norm.LAYER), "network.norm", "", ""),
        (denoise(), network(qk_norm=QKNorm.NONE), "network.qk_norm", "", ""),
        (denoise(), denoise(condition=ClassCondition(num_classes=4)), "condition.num_classes", "3", "4"),
        (denoise(), denoise(condition=TEXT), "condition.class", '"ClassCondition"', '"TextCondition"'),
        (
            denoise(WAN, condition=TEXT),
            denoise(WAN, condition=TEXT, known=FirstFrame(shown=AsChannels())),
            "known.shown.class",
            "null",
            '"AsChannels"',
        ),
        (Autoencode(vae=SMALL_VAE), Autoencode(vae=TWO_LEVEL_VAE), "vae.multipliers", "[1]", "[1, 2]"),
    ],
)
def test_what_changes_the_function_is_refused_with_both_values(start, theirs, ours, field, there, here):
    with pytest.raises(ExperimentError) as refused:
        start(theirs, ours)
    message = str(refused.value)
    assert "--init_from=run" in message
    assert f"config.task.{field}: there {there}" in message
    assert f", here {here}" in message
    assert "--allow_change" in message
    assert f"config.task.{field}: there" in start(theirs, ours, allow_change=True)


@pytest.mark.parametrize(
    "ours",
    [
        network(remat=Remat.FULL),
        denoise(precision=Precision.BFLOAT16),
        denoise(sampler=Euler(num_steps=3), guidance=Guidance(scale=3.0)),
        denoise(condition=ClassCondition(num_classes=3, drop_rate=0.5)),
        denoise(known=FirstFrame(shown=LevelZero())),
        dataclasses.replace(SMALL_DENOISE, held_out_logsnr=(0.0,)),
    ],
    ids=("remat", "precision", "sampling", "drop rate", "a first frame within x_t", "held-out levels"),
)
def test_what_does_not_passes_without_a_word(start, ours):
    assert start(denoise(), ours) == ""
    assert start(ours, denoise()) == ""


def test_another_objective_is_said_and_passes(start):
    said = start(denoise(), denoise(objective=ddpm()))
    assert "its weights were trained for something else" in said
    assert 'config.task.objective.prediction.class: there "Velocity", here "Epsilon"' in said
    losses = AutoencodeLoss(kl=1e-2)
    assert "losses.kl" in start(Autoencode(vae=SMALL_VAE), Autoencode(vae=SMALL_VAE, losses=losses))
