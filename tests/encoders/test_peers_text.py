"""Text encoders as published: the same weights, the same ids, the same states as in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dit_video.encoders import clip_text_names, t5_names
from dit_video.encoders.clip_text import CLIPTextModel
from dit_video.encoders.t5 import T5Encoder, position_buckets
from dit_video.nn.module import Definition, define
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch
from dit_video.weights.source import open_published

# Odd numbers of heads, heads that are not as wide as the model, few buckets that reach less far than a caption.
T5_CONFIGS = {
    "t5": {"d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 3, "num_heads": 3},
    "one block": {"d_model": 12, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 5},
    "near": {
        **{"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
        **{"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
    },
}
CLIP_CONFIGS = {
    "quick gelu": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    "gelu": {"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 2, "hidden_act": "gelu"},
    "one block": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "hidden_act": "gelu"},
}
VOCABULARY, END = 50, 49
T5_CLASSES = {
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
}
CLIP_CLASSES = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)


def their_t5(kind: str, config: dict, seed: int = 0):
    """With random weights, norms too."""
    make_config, make = T5_CLASSES[kind]
    return randomised(make(make_config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **config)), seed)


def their_clip(make, config: dict, **options):
    ends = {"eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": 0}
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 28, "max_position_embeddings": 19, "projection_dim": 14}
    return randomised(make(transformers.CLIPTextConfig(**sizes | ends | config | options)), 0)


def randomised(network, seed: int):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3, generator=generator)
    return network.eval()


def read_all(family, config, folder) -> dict[str, np.ndarray]:
    with open_published(folder) as published:
        assert published.dialect is Dialect.TRANSFORMERS
        source = family.tensors(published.source)
        names.check(family.table(config), published.dialect, source)
        return dict(names.read(family.table(config), published.dialect, source))


def opened(family, folder):
    with open_published(folder) as published:
        return family.of_transformers(published.config)


def t5_definition(config) -> Definition:
    return define(lambda key: T5Encoder(config, dtype=jnp.float32, rngs=nnx.Rngs(key)))


def clip_definition(config) -> Definition:
    return define(lambda key: CLIPTextModel(config, dtype=jnp.float32, rngs=nnx.Rngs(key)))


def relative_error(actual, expected: torch.Tensor) -> float:
    """Of the worst caption: largest difference over largest value."""
    actual, expected = np.asarray(actual), expected.detach().numpy()
    assert actual.shape == expected.shape
    axes = tuple(range(1, expected.ndim))
    return float((np.abs(actual - expected).max(axes) / np.abs(expected).max(axes)).max())


def captions(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of captions of one token, of some, and of all, ended and then padded with 0."""
    num_tokens = np.array([1, length // 2 + 1, length])
    ids = np.random.default_rng(length).integers(1, END - 1, (3, length))
    for row, n in zip(ids, num_tokens):
        row[n - 1 :] = 0
        row[n - 1] = END
    return ids, num_tokens


def assert_moved_without_loss(table: names.Table, params, theirs) -> None:
    """What is written for transformers is what was read."""
    back = dict(names.write(table, Dialect.TRANSFORMERS, params))
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value.numpy(), strict=True)


@pytest.mark.parametrize("kind", T5_CLASSES)
@pytest.mark.parametrize("config", T5_CONFIGS.values(), ids=T5_CONFIGS)
def test_t5_of_transformers_computes_the_same_here(kind, config, tmp_path):
    theirs = their_t5(kind, config)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    ours = opened(t5_names, tmp_path)
    params = read_all(t5_names, ours, tmp_path)
    definition = t5_definition(ours)
    assert {n: x.shape for n, x in params.items()} == {n: s.shape for n, s in definition.shapes.items()}
    weights = theirs.state_dict()
    del weights["encoder.embed_tokens.weight"]  # the table by its other name
    assert_moved_without_loss(t5_names.table(ours), params, weights)
    encode = jax.jit(lambda params, ids, num_tokens: definition.bind(params)(ids, num_tokens))
    for length, masked in ((1, True), (33, True), (33, False)):
        ids, num_tokens = captions(length)
        mask = torch.arange(length)[None] < torch.from_numpy(num_tokens)[:, None]
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids), attention_mask=mask.long() if masked else None)
        actual = encode(params, jnp.asarray(ids), jnp.asarray(num_tokens) if masked else None)
        assert relative_error(actual, expected.last_hidden_state) < 1e-4


@pytest.mark.parametrize("make", CLIP_CLASSES)
@pytest.mark.parametrize("config", CLIP_CONFIGS.values(), ids=CLIP_CONFIGS)
def test_clip_of_transformers_computes_the_same_here(make, config, tmp_path):
    theirs = their_clip(make, config)
    theirs.save_pretrained(tmp_path)
    ours = opened(clip_text_names, tmp_path)
    params = read_all(clip_text_names, ours, tmp_path)
    definition = clip_definition(ours)
    assert {n: x.shape for n, x in params.items()} == {n: s.shape for n, s in definition.shapes.items()}
    weights = {n if n.startswith("text_") else f"text_model.{n}": x for n, x in theirs.state_dict().items()}
    assert_moved_without_loss(clip_text_names.table(ours), params, weights)
    encode = jax.jit(lambda params, ids: definition.bind(params)(ids))
    for length in (8, 19):
        ids, _ = captions(length)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids), output_hidden_states=True)
        actual = encode(params, jnp.asarray(ids))
        assert relative_error(actual.last, expected.last_hidden_state) < 1e-4
        assert relative_error(actual.penultimate, expected.hidden_states[-2]) < 1e-4
        # As pipelines take it: the projection where there is one.
        pooled = expected.text_embeds if ours.projection_size else expected.pooler_output
        assert relative_error(actual.pooled, pooled) < 1e-4


def test_without_the_id_of_an_end_the_last_token_of_all_ends_a_caption(tmp_path):
    theirs = their_clip(CLIP_CLASSES[1], CLIP_CONFIGS["gelu"], eos_token_id=2, bos_token_id=0, pad_token_id=1)
    theirs.save_pretrained(tmp_path)
    ours = opened(clip_text_names, tmp_path)
    assert ours.end_token == END
    ids, _ = captions(9)
    params = {name: jnp.asarray(value) for name, value in read_all(clip_text_names, ours, tmp_path).items()}
    actual = clip_definition(ours).bind(params)(jnp.asarray(ids))
    with torch.no_grad():
        assert relative_error(actual.pooled, theirs(torch.from_numpy(ids)).text_embeds) < 1e-4


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (12, 20), (8, 300)])
def test_distances_fall_into_the_published_ranges(num_buckets, max_distance):
    offset = torch.arange(600)[None] - torch.arange(600)[:, None]
    bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    expected = bucket(offset, num_buckets=num_buckets, max_distance=max_distance)
    np.testing.assert_array_equal(position_buckets(600, num_buckets, max_distance), expected.numpy())


def stored(**tensors: np.ndarray) -> names.Source:
    return {name: names.StoredTensor(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}


def test_the_table_of_t5_may_be_there_twice_if_it_is_the_same():
    one, other = np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)
    again = {"encoder.embed_tokens.weight": one}
    for source in (stored(**again), stored(**again, **{"shared.weight": one})):
        weights = t5_names.tensors(source)
        assert list(weights) == ["shared.weight"]
        np.testing.assert_array_equal(weights["shared.weight"].read(), one)
    with pytest.raises(NamesMismatch, match="weight differs from shared"):
        t5_names.tensors(stored(**again, **{"shared.weight": other}))


def test_older_files_of_clip_count_positions():
    counted = stored(**{"text_model.embeddings.position_ids": np.arange(7)[None]})
    assert clip_text_names.tensors(counted) == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: {"renamed": x.pop("shared.weight"), **x}, r"missing shared.weight \[50, 12\]"),
        (lambda x: {**x, "renamed": x["shared.weight"]}, "surplus renamed"),
        (lambda x: {**x, "shared.weight": x["shared.weight"][:-1]}, r"shared.weight is \[49, 12\]"),
        (lambda x: {**x, "shared.weight": x["shared.weight"].astype(np.float64)}, "is float64; float32 has not all"),
    ],
)
def test_a_tensor_that_is_not_the_networks_is_an_error_that_names_it(spoil, message):
    theirs = their_t5("umt5", T5_CONFIGS["one block"])
    config = t5_names.of_transformers(theirs.config.to_dict() | {"architectures": ["UMT5EncoderModel"]})
    weights = {name: x.numpy() for name, x in theirs.state_dict().items() if "embed_tokens" not in name}
    table = t5_names.table(config)
    names.check(table, Dialect.TRANSFORMERS, stored(**weights))
    with pytest.raises(NamesMismatch, match=message):
        names.check(table, Dialect.TRANSFORMERS, stored(**spoil(weights)))


def test_the_second_product_of_the_mlp_may_be_float32_where_all_else_is_half():
    theirs = their_t5("t5", T5_CONFIGS["one block"])
    config = t5_names.of_transformers(theirs.config.to_dict() | {"architectures": ["T5EncoderModel"]})
    weights = {name: x.numpy() for name, x in theirs.state_dict().items() if "embed_tokens" not in name}
    half = {name: x if name.endswith("wo.weight") else x.astype(np.float16) for name, x in weights.items()}
    assert names.check(t5_names.table(config), Dialect.TRANSFORMERS, stored(**half)) == (np.float16, np.float32)


T5_JSON = {
    **{"model_type": "t5", "architectures": ["T5EncoderModel"], "feed_forward_proj": "gated-gelu", "vocab_size": 9},
    **{"d_model": 4, "num_layers": 1, "num_heads": 2, "d_kv": 2, "d_ff": 8, "relative_attention_num_buckets": 32},
}
CLIP_JSON = {
    **{"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "vocab_size": 9, "hidden_size": 4},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 7},
    **{"eos_token_id": 8},
}


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (t5_names, T5_JSON | {"architectures": ["T5ForConditionalGeneration"]}, "only T5EncoderModel is read"),
        (t5_names, T5_JSON | {"feed_forward_proj": "relu"}, "feed_forward_proj='relu'"),
        (t5_names, T5_JSON | {"d_kv": 0}, "d_kv=0: must be a positive number"),
        (
            clip_text_names,
            CLIP_JSON | {"architectures": ["CLIPModel"]},
            "only CLIPTextModel and CLIPTextModelWithProjection",
        ),
        (clip_text_names, CLIP_JSON | {"hidden_act": "silu"}, "hidden_act='silu'"),
        (clip_text_names, CLIP_JSON | {"num_attention_heads": 3}, "hidden_size=4: must be a multiple of num_heads=3"),
    ],
)
def test_a_config_that_is_no_text_encoder_is_an_error_that_names_the_field(family, config, message):
    with pytest.raises(ValueError, match=message):
        family.of_transformers(config)


def test_each_family_knows_its_own():
    assert t5_names.of_transformers(CLIP_JSON) is None
    assert clip_text_names.of_transformers(T5_JSON) is None


@pytest.mark.parametrize(("kind", "vocabulary", "parameters"), [("t5", 32128, 4.76e9), ("umt5", 256384, 5.68e9)])
def test_the_encoders_of_published_pipelines_have_their_numbers_of_parameters(kind, vocabulary, parameters):
    make_config, make = T5_CLASSES[kind]
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    config = make_config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **sizes)
    with torch.device("meta"):
        expected = sum(weight.numel() for weight in make(config).parameters())
    architectures = [make.__name__]
    actual = t5_definition(t5_names.of_transformers(config.to_dict() | {"architectures": architectures})).num_params
    assert actual == expected == pytest.approx(parameters, rel=1e-3)
