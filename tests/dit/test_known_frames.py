import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.data.captions import encode_captions
from dit_video.dit.condition import TextCondition
from dit_video.dit.dit import DiTConfig
from dit_video.dit.known_frames import AsChannels

WORDS = TextCondition(hidden_size=8, depth=1, num_heads=1, drop_rate=0.5)
CAPTIONS = jnp.asarray(encode_captions(["up", "down"] * 50, 8))
LATENTS = jax.random.normal(jax.random.key(0), (100, 3, 2, 2, 4))


def test_a_network_sees_which_frames_are_known_and_latents_of_them():
    channels = AsChannels()
    cond = channels.show(CAPTIONS, LATENTS)
    assert cond.cells.shape[-1] == channels.num_channels(4) == 8
    mask, latents = jnp.split(cond.cells, [4], axis=-1)
    np.testing.assert_array_equal(mask[:, 0], 1.0)
    np.testing.assert_array_equal(mask[:, 1:], 0.0)
    np.testing.assert_array_equal(latents, LATENTS)
    np.testing.assert_array_equal(cond.text, CAPTIONS)


def test_without_grey_frames_no_later_frame_is_seen():
    cells = AsChannels(grey_frames=False, mask_channels=1).show(CAPTIONS, LATENTS).cells
    assert cells.shape[-1] == 5
    np.testing.assert_array_equal(cells[:, 0, ..., 1:], LATENTS[:, 0])
    np.testing.assert_array_equal(cells[:, 1:], 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_channels": 0}, "mask_channels=0: must be at least 1"),
        ({"image_size": 0}, "image_size=0: must be at least 1"),
    ],
)
def test_channels_that_cannot_be_are_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=f"AsChannels.{message}"):
        AsChannels(**change)


def test_tokens_of_an_image_are_there_where_they_are_attended_to():
    image = jnp.zeros((100, 5, 9))
    assert AsChannels(image_size=9).show(CAPTIONS, LATENTS, image).image is image
    with pytest.raises(ValueError, match="image_size=9: the network attends to tokens of an image encoder"):
        AsChannels(image_size=9).show(CAPTIONS, LATENTS)
    with pytest.raises(ValueError, match="image_size=None: the network attends to no image"):
        AsChannels().show(CAPTIONS, LATENTS, image)


def test_a_clip_of_one_latent_frame_has_none_to_generate():
    with pytest.raises(ValueError, match=r"clips.num_frames: a first frame is continued by others"):
        AsChannels().show(CAPTIONS, LATENTS[:, :1])


def test_a_network_that_takes_no_channels_says_so():
    config = DiTConfig(hidden_size=16, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="only a WanConfig makes a network that does"):
        config.build(4, WORDS, known=AsChannels(), dtype=jnp.float32, rngs=nnx.Rngs(0))
