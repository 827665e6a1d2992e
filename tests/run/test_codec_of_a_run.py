"""Identity of a codec: weights and statistics of its latents; statistics that are edited or cannot be are refused."""

import json
import math

import numpy as np
import pytest
from flax import nnx
from toys import SMALL_VAE

from dit_video.nn.module import params_of
from dit_video.run.codec import STATISTICS, read_statistics, write_statistics
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import name_codec_as
from dit_video.weights.digest import is_name_of_before, name_as


def test_the_name_of_a_codec_is_of_its_statistics_too_and_one_of_before_of_its_weights():
    vae = SMALL_VAE.build(rngs=nnx.Rngs(0))
    channels = vae.config.latent_channels
    codec, other = (LatentCodec(vae, np.zeros(channels), np.full(channels, x)) for x in (1.0, 4.0))
    assert name_codec_as(None, codec) != name_codec_as(None, other)
    before = name_codec_as("of before", codec)
    assert is_name_of_before(before)
    assert before == name_codec_as("of before", other) == name_as("of before", params_of(vae))


@pytest.fixture
def path(tmp_path):
    write_statistics(tmp_path, "2:00", [0.5, -1.0], [1.0, 2.5])
    return tmp_path / STATISTICS


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_statistics_read_as_they_were_written_with_and_without_a_seal(path):
    written = read_statistics(path, 2)
    assert (written["codec"], written["mean"], written["std"]) == ("2:00", [0.5, -1.0], [1.0, 2.5])
    path.write_text(json.dumps({name: value for name, value in written.items() if name != "seal"}))
    assert read_statistics(path, 2)["std"] == [1.0, 2.5]


@pytest.mark.parametrize("field", [{"std": [4.0, 10.0]}, {"mean": [0.5, -1.0000001]}, {"codec": "2:01"}, {"seal": "0"}])
def test_statistics_that_were_edited_are_refused(path, field):
    edit(path, **field)
    with pytest.raises(ValueError, match=r"has changed since it was written\. Bring"):
        read_statistics(path, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("mean", "std") for value in ([1.0], [1.0] * 3, [1.0, math.nan], [1.0, math.inf])]
    + [(name, value) for name in ("mean", "std") for value in (None, 1.0, "ab", [1.0, True], [1.0, "2"], [1.0, 1e39])]
    + [("mean", [1.0, -math.inf]), ("std", [1.0, 0.0]), ("std", [1.0, -1.0])],
)
def test_what_cannot_be_statistics_is_refused_by_name(path, name, value):
    edit(path, **{name: value, "seal": None})
    with pytest.raises(ValueError, match=rf"{STATISTICS}: .*{name}=.*must be"):
        read_statistics(path, 2)


def test_a_record_of_statistics_names_its_codec(path):
    edit(path, codec=3, seal=None)
    with pytest.raises(ValueError, match="codec=3: must be a text"):
        read_statistics(path, 2)
