"""The image encoder as published: the same weights, the same pixels, the same states as in transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dit_video.encoders import clip_image_names
from dit_video.encoders.clip_image import CLIP_VIT_H, CLIPVisionConfig, CLIPVisionModel, prepared
from dit_video.nn.module import define
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch, StoredTensor
from dit_video.weights.source import open_published

# Odd numbers of heads and of patches, patches of an odd number of pixels, and the fewest blocks.
CONFIGS = {
    "gelu": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4, "hidden_act": "gelu"},
    "quick gelu": {"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    "two blocks": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 2, "hidden_act": "gelu"},
}
SIZES = {
    "gelu": {"image_size": 12, "patch_size": 4},
    "quick gelu": {"image_size": 15, "patch_size": 3},
    "two blocks": {"image_size": 10, "patch_size": 5},
}


def their_clip(kind: str):
    """With random weights, norms too."""
    config = transformers.CLIPVisionConfig(intermediate_size=28, **CONFIGS[kind], **SIZES[kind])
    network, generator = transformers.CLIPVisionModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3, generator=generator)
    return network.eval()


def defined(config):
    return define(lambda key: CLIPVisionModel(config, dtype=jnp.float32, rngs=nnx.Rngs(key)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_clip_of_transformers_computes_the_same_here(kind, tmp_path):
    theirs = their_clip(kind)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    with open_published(tmp_path) as published:
        config = clip_image_names.of_transformers(published.config)
        table, source = clip_image_names.table(config), clip_image_names.tensors(published.source)
        names.check(table, Dialect.TRANSFORMERS, source)
        params = dict(names.read(table, Dialect.TRANSFORMERS, source))
    definition = defined(config)
    assert {n: x.shape for n, x in params.items()} == {n: s.shape for n, s in definition.shapes.items()}
    weights = {f"vision_model.{name}": x.numpy() for name, x in theirs.state_dict().items()}
    for name, value in names.write(table, Dialect.TRANSFORMERS, params):
        np.testing.assert_array_equal(value, weights.pop(name), strict=True)
    assert weights.keys() == table.unused[Dialect.TRANSFORMERS]
    pixels = np.random.default_rng(0).standard_normal((3, config.image_size, config.image_size, 3), np.float32)
    actual = jax.jit(lambda params, pixels: definition.bind(params).penultimate(pixels))(params, pixels)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
    expected = expected.hidden_states[-2].numpy()
    assert actual.shape == expected.shape == (3, config.num_tokens, config.hidden_size)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


JSON = {
    **{"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], "hidden_size": 4, "image_size": 6},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 3},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["CLIPModel"]}, "only CLIPVisionModel is read"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"num_channels": 1}, "num_channels=1"),
        ({"num_attention_heads": 3}, "hidden_size=4: must be a multiple of num_heads=3"),
        ({"patch_size": 4}, "image_size=6: must be a multiple of patch_size=4"),
        ({"num_hidden_layers": 1}, "depth=1: must be at least 2"),
        ({"hidden_size": None}, "hidden_size=None: must be a positive number"),
    ],
)
def test_a_config_that_is_no_image_encoder_is_an_error_that_names_the_field(change, message):
    clip_image_names.of_transformers(JSON)
    with pytest.raises(ValueError, match=message):
        clip_image_names.of_transformers(JSON | change)


def test_a_config_of_another_model_is_another_family():
    assert clip_image_names.of_transformers(JSON | {"model_type": "clip_text_model"}) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: {"renamed": x.pop("class_embedding"), **x}, r"missing .*embeddings.class_embedding \[8\]"),
        (lambda x: {**x, "renamed": x["class_embedding"]}, "surplus vision_model.embeddings.renamed"),
        (lambda x: {**x, "class_embedding": x["class_embedding"][:-1]}, r"class_embedding is \[7\]"),
    ],
)
def test_a_tensor_that_is_not_the_networks_is_an_error_that_names_it(spoil, message):
    theirs = their_clip("two blocks")
    config = clip_image_names.of_transformers(theirs.config.to_dict() | {"architectures": ["CLIPVisionModel"]})
    weights = {name: x.numpy() for name, x in theirs.state_dict().items()}
    first = "embeddings."
    spoiled = spoil({n.removeprefix(first): x for n, x in weights.items() if n.startswith(first)})
    rest = {n: x for n, x in weights.items() if not n.startswith(first)}
    for tensors, wrong in ((weights, None), ({**{f"{first}{n}": x for n, x in spoiled.items()}, **rest}, message)):
        source = clip_image_names.tensors(
            {n: StoredTensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()}
        )
        if wrong is None:
            names.check(clip_image_names.table(config), Dialect.TRANSFORMERS, source)
            continue
        with pytest.raises(NamesMismatch, match=wrong):
            names.check(clip_image_names.table(config), Dialect.TRANSFORMERS, source)


def small(side: int) -> CLIPVisionConfig:
    return clip_image_names.of_transformers(JSON | {"image_size": side})


@pytest.mark.parametrize("where", ["encoder", "pipeline/image_processor"])
@pytest.mark.parametrize("size", [(17, 29), (31, 12), (5, 8)], ids=str)
def test_pictures_are_prepared_as_the_file_beside_an_encoder_says(where, size, tmp_path):
    """Byte for byte but where a value lies between two."""
    side, picture = 12, np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    processor.save_pretrained(tmp_path / where)
    folder = tmp_path / where
    if where != "encoder":
        folder = tmp_path / "pipeline" / "image_encoder"
        (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    clip_image_names.check_processor(folder, small(side))
    expected = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / where)(images=picture[0])["pixel_values"]
    actual = np.asarray(prepared(picture, side))
    steps = np.abs(actual - np.asarray(expected).transpose(0, 2, 3, 1)) * 255 * np.array(processor.image_std)
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 1e-2
    with pytest.raises(ValueError, match=r"preprocessor_config.json: size=\{'shortest_edge': 12\}: .* 6 x 6 pixels"):
        clip_image_names.check_processor(folder, small(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "resample=2: pictures are prepared here with 3"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean=\[0.5, 0.5, 0.5\]: .* here with \(0.48145466"),
        ({"image_std": 0.5}, "image_std=0.5: "),
        ({"do_center_crop": False}, "do_center_crop=False: "),
        ({"do_normalize": False}, "do_normalize=False: "),
        ({"rescale_factor": 1}, "rescale_factor=1: "),
        ({"do_pad": True}, "do_pad=True: "),
        ({"size": {"height": 12, "width": 12}}, r"size=\{'height': 12, 'width': 12\}: the encoder is shown 12 x 12"),
        ({"crop_size": {"height": 12, "width": 10}}, "crop_size="),
        ({"crop_size": None}, "crop_size=None: "),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type='ViTImageProcessor': "),
    ],
)
def test_pictures_that_are_prepared_otherwise_are_an_error_that_names_the_field(change, message, tmp_path):
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size=12)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        clip_image_names.check_processor(tmp_path, small(12))


def test_older_files_say_sizes_as_numbers_and_leave_fields_out(tmp_path):
    config = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 12, "crop_size": 12, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    clip_image_names.check_processor(tmp_path, small(12))


def test_the_encoder_of_the_published_pipeline_has_its_number_of_parameters():
    """All but those of the last block and of what follows it."""
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    config = transformers.CLIPVisionConfig(image_size=224, patch_size=14, hidden_act="gelu", **sizes)
    with torch.device("meta"):
        theirs = transformers.CLIPVisionModel(config)
    left_out = [*theirs.encoder.layers[-1].parameters(), *theirs.post_layernorm.parameters()]
    expected = sum(x.numel() for x in theirs.parameters()) - sum(x.numel() for x in left_out)
    assert clip_image_names.of_transformers(config.to_dict() | {"architectures": ["CLIPVisionModel"]}) == CLIP_VIT_H
    assert defined(CLIP_VIT_H).num_params == expected
    assert CLIP_VIT_H.num_tokens == 257
