"""Counts of config.json files are claims, bounded by the tensors beside them before anything is built."""

import json
import time

import numpy as np
import pytest
from published_dit import SAVED, publish, read, tensors

from dit_video.published.autoencoder_kl import AutoencoderKLFamily
from dit_video.weights.config_json import (
    BoundedConfig,
    count_of,
    counts_of,
    epsilon_of,
    flags_of,
    number_of,
    with_fields,
)
from dit_video.weights.folder import CONFIG
from dit_video.weights.names import Dialect

BESIDE = BoundedConfig.beside({}, [(8, 3), (12,), ()])
VAE = {
    "_class_name": "AutoencoderKL",
    **{"in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1},
    **{"block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]},
}


@pytest.mark.parametrize("claim", [{"num_layers": 10**9}, {"num_layers": 100}, {"attention_head_dim": 10**12}])
def test_a_config_that_claims_more_than_its_tensors_is_refused_at_once(claim, tmp_path):
    folder = publish(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS), tmp_path)
    (folder / CONFIG).write_text(json.dumps(SAVED | claim))
    began = time.process_time()
    with pytest.raises(ValueError, match=next(iter(claim))):
        read(folder)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "claim",
    [
        {"layers_per_block": 10**9},
        {"latent_channels": 10**12},
        {"norm_num_groups": 13},
        {name: value * 3000 for name, value in VAE.items() if isinstance(value, list)},
        # Each alone would be as many as there are tensors.
        {name: value * 5 for name, value in VAE.items() if isinstance(value, list)} | {"layers_per_block": 5},
    ],
    ids=["layers", "channels", "groups", "levels", "levels x layers"],
)
def test_levels_and_layers_of_a_vae_are_bounded_together(claim):
    config = BoundedConfig.beside(VAE | claim, [(8,)] * 20 + [(12, 8)])
    with pytest.raises(ValueError, match=r"config\.json: .*(tensor|at most)"):
        AutoencoderKLFamily.of_diffusers(config)


def test_the_bound_is_the_longest_axis_and_the_number_of_tensors():
    assert count_of(with_fields(BESIDE, {"dim": 12, "num_layers": 3}), "dim") == 12
    assert count_of(with_fields(BESIDE, {"num_layers": 3}), "num_layers") == 3
    assert counts_of(with_fields(BESIDE, {"dims": [12, 1, 8]}), "dims", (1,)) == (12, 1, 8)
    for fields in ({"dim": 13}, {"num_layers": 4}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            count_of(with_fields(BESIDE, fields), next(iter(fields)))
    with pytest.raises(ValueError, match="dims"):
        counts_of(with_fields(BESIDE, {"dims": [1, 1, 1, 1]}), "dims", (1,))
    with pytest.raises(ValueError, match="flags"):
        flags_of(with_fields(BESIDE, {"flags": [True] * 4}), "flags", (True,))


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), 10**400, [1.0]])
def test_what_is_no_finite_number_is_none(value):
    with pytest.raises(ValueError, match=r"config\.json: x="):
        number_of({"x": value}, "x", 1.0)
    with pytest.raises(ValueError, match=r"config\.json: x="):
        epsilon_of({"x": value}, "x", 0.5)


def test_a_long_value_is_cut_in_its_message():
    with pytest.raises(ValueError, match="x=") as caught:
        count_of({"x": "y" * 10**6}, "x")
    assert len(str(caught.value)) < 300


def test_what_is_whole_is_recognised_with_its_tensors_beside_it(tmp_path):
    weights = tensors(Dialect.DIFFUSERS)
    params, _ = read(publish(Dialect.DIFFUSERS, weights, tmp_path))
    assert len(params) > 10
    assert all(np.isfinite(x).all() for x in params.values())
