import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.arrays import Text
from dit_video.data.captions import encode_captions
from dit_video.dit.condition import ClassCondition, EmbeddedText, TextCondition
from dit_video.dit.dit import DiT, DiTConfig
from dit_video.dit.first_frame import FirstFrame
from dit_video.nn.module import define

WORDS = TextCondition(hidden_size=8, depth=1, num_heads=1, drop_rate=0.5)
CAPTIONS = jnp.asarray(encode_captions(["up", "down"] * 50, 8))
LATENTS = jax.random.normal(jax.random.key(0), (100, 3, 2, 2, 4))
EMBEDDED = EmbeddedText(hidden_size=6, pooled_size=2, num_tokens=3)


def framed(condition: FirstFrame):
    return condition.framed(condition.read(label=None, caption=CAPTIONS, text=None), LATENTS)


def test_a_network_sees_which_frames_are_known_and_latents_of_them():
    condition = FirstFrame(text=WORDS)
    cond = framed(condition)
    assert cond.cells.shape[-1] == condition.num_channels(4) == 8
    mask, latents = jnp.split(cond.cells, [4], axis=-1)
    np.testing.assert_array_equal(mask[:, 0], 1.0)
    np.testing.assert_array_equal(mask[:, 1:], 0.0)
    np.testing.assert_array_equal(latents, LATENTS)
    np.testing.assert_array_equal(cond.text, CAPTIONS)


def test_without_grey_frames_no_later_frame_is_told():
    cells = framed(FirstFrame(text=WORDS, grey_frames=False, mask_channels=1)).cells
    assert cells.shape[-1] == 5
    np.testing.assert_array_equal(cells[:, 0, ..., 1:], LATENTS[:, 0])
    np.testing.assert_array_equal(cells[:, 1:], 0.0)


def test_captions_are_dropped_as_often_as_they_say_and_frames_never():
    condition = FirstFrame(text=WORDS)
    cond = framed(condition)
    dropped = condition.drop(jax.random.key(1), cond, condition.null(cond))
    np.testing.assert_array_equal(dropped.cells, cond.cells)
    same = (dropped.text == cond.text).all(axis=1)
    assert 30 < int(same.sum()) < 70
    np.testing.assert_array_equal(dropped.text[~same], WORDS.null(CAPTIONS)[~same])


def test_guidance_leaves_the_caption_out_and_the_frame_in():
    condition = FirstFrame(text=WORDS)
    cond = framed(condition)
    null = condition.null(cond)
    np.testing.assert_array_equal(null.cells, cond.cells)
    np.testing.assert_array_equal(null.text, WORDS.null(CAPTIONS))


def test_what_stands_for_no_text_may_be_loaded():
    condition = FirstFrame(text=EMBEDDED)
    blank = condition.blank_null()
    assert jax.tree.map(jnp.shape, blank) == Text((1, 3, 6), (1,), (1, 2))
    cond = condition.framed(jax.tree.map(lambda x: jnp.repeat(x, 100, axis=0) + 1, blank), LATENTS)
    null = condition.null(cond, blank)
    np.testing.assert_array_equal(null.text.tokens, blank.tokens)
    np.testing.assert_array_equal(null.cells, cond.cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_rate": 0.1}, "drop_rate=0.1: must be 0"),
        ({"text": ClassCondition(num_classes=3)}, "text=ClassCondition"),
        ({"mask_channels": 0}, "mask_channels=0: must be at least 1"),
        ({"image_size": 0}, "image_size=0: must be at least 1"),
    ],
)
def test_a_condition_that_cannot_be_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=f"FirstFrame.{message}"):
        FirstFrame(**({"text": WORDS} | change))


def test_tokens_of_an_image_are_there_where_they_are_attended_to():
    image = jnp.zeros((100, 5, 9))
    text = FirstFrame(text=WORDS).read(label=None, caption=CAPTIONS, text=None)
    assert FirstFrame(text=WORDS, image_size=9).framed(text, LATENTS, image).image is image
    with pytest.raises(ValueError, match="image_size=9: the network attends to tokens of an image encoder"):
        framed(FirstFrame(text=WORDS, image_size=9))
    with pytest.raises(ValueError, match="image_size=None: the network attends to no image"):
        FirstFrame(text=WORDS).framed(text, LATENTS, image)


def test_a_network_that_takes_no_frame_says_so():
    config = DiTConfig(hidden_size=16, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="only a WanConfig makes a network that takes a first frame"):
        define(lambda key: DiT(config, 4, FirstFrame(text=WORDS), rngs=nnx.Rngs(key)))
