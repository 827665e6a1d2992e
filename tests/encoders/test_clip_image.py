"""CLIP image preprocessing equals that of transformers, for pictures of any size; tokens of a small encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPImageProcessorPil

from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_image import CLIPVisionConfig, prepared
from dit_video.encoders.image import PretrainedImage
from dit_video.nn.module import Precision

SMALL = CLIPVisionConfig(
    **{"hidden_size": 8, "depth": 3, "num_heads": 2, "mlp_size": 12, "activation": Activation.GELU},
    **{"image_size": 12, "patch_size": 4},
)


@pytest.mark.parametrize("size", [(300, 420), (421, 300), (224, 224), (96, 97), (33, 120)], ids=str)
def test_pictures_are_prepared_as_transformers_prepares_them(size):
    """Byte for byte but where a value lies between two: those differ by one, and are few."""
    rng = np.random.default_rng(0)
    rows, columns = (np.linspace(0, 1, n)[:, None] for n in size)
    smooth = 127 + 127 * np.sin(40 * rows @ columns.T + np.arange(3)[:, None, None]).transpose(1, 2, 0)[None]
    for picture in (smooth.astype(np.uint8), rng.integers(0, 256, (1, *size, 3), np.uint8)):
        processor = CLIPImageProcessorPil()
        expected = processor(images=picture[0], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        actual = np.asarray(jax.jit(prepared, static_argnums=1)(picture, 224))
        assert actual.shape == expected.shape == (1, 224, 224, 3)
        steps = np.abs(actual - expected) * 255 * np.array(processor.image_std)
        assert steps.max() < 1.01
        assert (steps > 0.01).mean() < 2e-3


def test_clips_are_prepared_one_by_one():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    pixels = prepared(pictures, 12)
    np.testing.assert_array_equal(pixels[1:], prepared(pictures[1:], 12))


def test_a_picture_has_one_token_for_each_patch_and_a_class_token():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    encode = jax.jit(lambda key, pictures: PretrainedImage(encoder=SMALL, model="none").blank(key)(pictures))
    states = encode(jax.random.key(0), pictures)
    assert states.shape == (2, SMALL.num_tokens, 8) == (2, 10, 8)
    np.testing.assert_allclose(encode(jax.random.key(0), pictures[::-1]), states[::-1], atol=1e-5)
    # Every token attends to every patch: one that differs moves all of them.
    other = pictures.copy()
    other[:, -3:, -10:] = 255 - other[:, -3:, -10:]
    assert (np.abs(encode(jax.random.key(0), other) - states).max(axis=-1) > 1e-4).all()


def test_weights_are_kept_in_what_is_computed_in():
    image = PretrainedImage(encoder=SMALL, model="none", precision=Precision.BFLOAT16)
    network = image.blank(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(network)} == {jnp.dtype(jnp.bfloat16)}
    assert network(np.zeros((1, 12, 12, 3), np.uint8)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1}, "depth=1: must be at least 2"),
        ({"num_heads": 3}, "hidden_size=8: must be a multiple of num_heads=3"),
        ({"patch_size": 5}, "image_size=12: must be a multiple of patch_size=5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=f"CLIPVisionConfig.{message}"):
        dataclasses.replace(SMALL, **change)
