"""DiT as published: the same weights, the same input, the same output as in diffusers, in from and out to it."""

import dataclasses
import tracemalloc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps

from dit_video.nn.embed import TimeEmbedding
from dit_video.published.dit import ClassDiT
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch
from dit_video.weights.source import open_published

# Odd sizes of patches, heads, grids and channels; with and without a variance.
CONFIGS = {
    "learned variance": {
        "num_attention_heads": 2,
        "attention_head_dim": 6,
        "in_channels": 3,
        "out_channels": 6,
        "num_layers": 2,
        "sample_size": 6,
        "num_embeds_ada_norm": 5,
    },
    "prediction alone": {
        "num_attention_heads": 3,
        "attention_head_dim": 4,
        "num_layers": 1,
        "sample_size": 9,
        "patch_size": 3,
        "num_embeds_ada_norm": 1,
        "norm_eps": 1e-6,
    },
    "patches of one cell": {
        "num_attention_heads": 1,
        "attention_head_dim": 20,
        "in_channels": 1,
        "out_channels": 2,
        "num_layers": 3,
        "sample_size": 5,
        "patch_size": 1,
        "num_embeds_ada_norm": 7,
    },
}
TIMESTEPS = np.arange(1000)


def their_dit(config: Mapping[str, Any]) -> Any:
    """With the weights that torch starts from, the embeddings of time and class the same in all blocks."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**config).eval()
    weights = network.state_dict()
    for name in weights:
        if ".norm1.emb." in name:
            weights[name] = weights["transformer_blocks.0." + name.split(".", 2)[2]]
    network.load_state_dict(weights)
    return network


def outputs(
    network: ClassDiT, params: Mapping[str, Any], theirs: Any, size: int, timesteps: np.ndarray = TIMESTEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Of both networks, of latents of so many rows, every label and "no label" among them."""
    x_t = np.random.default_rng(0).standard_normal((len(timesteps), network.channels, size, size), np.float32)
    label = timesteps % (network.num_classes + 1)
    with torch.no_grad():
        inputs = (torch.from_numpy(x) for x in (x_t, timesteps, label))
        expected = theirs(*inputs, return_dict=False)[0].numpy()
    definition = network.define()
    t = jnp.asarray([[network.config.time_of(n)] for n in timesteps.tolist()], jnp.float32)
    output = jax.jit(lambda params, *args: definition.bind(params).output(*args))(
        dict(params), jnp.asarray(x_t.transpose(0, 2, 3, 1)[:, None]), t, jnp.asarray(label, jnp.int32)
    )
    parts = [part for part in output if part is not None]
    return np.concatenate(parts, axis=-1)[:, 0].transpose(0, 3, 1, 2), expected


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of the worst clip: largest difference over largest value."""
    return float((np.abs(actual - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))).max())


def read_all(network: ClassDiT, path, **options) -> dict[str, np.ndarray]:
    table = network.table()
    with open_published(path, **options) as published:
        names.check(table, published.dialect, published.source)
        return dict(names.read(table, published.dialect, published.source))


def random_params(network: ClassDiT) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: 0.1 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_of_diffusers_compute_the_same_here(config, tmp_path):
    theirs = their_dit(config)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1, "the folder has shards"
    with open_published(tmp_path) as published:
        network = ClassDiT.of_diffusers(published.config)
    params = read_all(network, tmp_path)
    size = theirs.config.sample_size
    assert relative_error(*outputs(network, params, theirs, size)) < 1e-4
    # Positions are stretched over latents of another size.
    other = size + 2 * theirs.config.patch_size
    assert relative_error(*outputs(network, params, theirs, other, TIMESTEPS[::111])) < 1e-4
    back = dict(names.write(network.table(), Dialect.DIFFUSERS, params))
    weights = theirs.state_dict()
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value.numpy(), strict=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_from_here_compute_the_same_in_diffusers(config):
    theirs = their_dit(config)
    network = ClassDiT.of_diffusers(theirs.config | {"_class_name": ClassDiT.diffusers_class})
    params = random_params(network)
    written = names.write(network.table(), Dialect.DIFFUSERS, params)
    theirs.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in written})
    assert relative_error(*outputs(network, params, theirs, theirs.config.sample_size)) < 1e-4
    again = network.diffusers_config((1, theirs.config.sample_size, theirs.config.sample_size))
    assert ClassDiT.of_diffusers(again) == network


def test_as_published_it_computes_what_diffusers_does_with_the_published_frequencies():
    config = CONFIGS["learned variance"] | {"norm_eps": 1e-6}
    theirs = their_dit(config)
    of_theirs = ClassDiT.of_diffusers(theirs.config | {"_class_name": ClassDiT.diffusers_class})
    source = stored(theirs.state_dict())
    params = dict(names.read(of_theirs.table(), Dialect.DIFFUSERS, source))
    network = dataclasses.replace(of_theirs, config=dataclasses.replace(of_theirs.config, time_frequency_shift=0))
    size = theirs.config.sample_size
    assert relative_error(*outputs(network, params, theirs, size, TIMESTEPS[::111])) > 1e-2
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(TimeEmbedding.num_frequencies, True, 0)
    assert relative_error(*outputs(network, params, theirs, size)) < 1e-4


def stored(tensors: Mapping[str, torch.Tensor]) -> names.Source:
    return {
        name: names.StoredTensor(tuple(x.shape), x.numpy().dtype, lambda x=x: x.numpy()) for name, x in tensors.items()
    }


def test_copies_that_differ_are_not_one():
    theirs = their_dit(CONFIGS["learned variance"])
    weights = theirs.state_dict()
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    weights[name] = weights[name] + 1
    network = ClassDiT.of_diffusers(theirs.config | {"_class_name": ClassDiT.diffusers_class})
    with pytest.raises(NamesMismatch, match=f"{name} differs from transformer_blocks.0.norm1"):
        dict(names.read(network.table(), Dialect.DIFFUSERS, stored(weights)))


@pytest.mark.parametrize("config", [CONFIGS["learned variance"], CONFIGS["patches of one cell"]])
def test_blocks_that_have_embedders_of_their_own_compute_the_same_here_and_go_back(config):
    """As after training in diffusers, where each block's are trained apart."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(**config).eval()
    weights = theirs.state_dict()
    source = stored(weights)
    network = ClassDiT.of_diffusers(theirs.config | {"_class_name": ClassDiT.diffusers_class}).informed_by(source)
    assert network.config.block_embedders
    assert network.table().expected(Dialect.DIFFUSERS) == {name: tuple(x.shape) for name, x in weights.items()}
    params = dict(names.read(network.table(), Dialect.DIFFUSERS, source))
    assert {n: x.shape for n, x in params.items()} == {n: s.shape for n, s in network.define().shapes.items()}
    assert relative_error(*outputs(network, params, theirs, config["sample_size"], TIMESTEPS[::37])) < 1e-4
    back = dict(names.write(network.table(), Dialect.DIFFUSERS, params))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value.numpy(), strict=True)


def test_published_weights_have_one_embedder_for_all_blocks_and_any_difference_is_seen():
    theirs = their_dit(CONFIGS["learned variance"])
    weights = theirs.state_dict()
    network = ClassDiT.of_diffusers(theirs.config | {"_class_name": ClassDiT.diffusers_class})
    assert network.informed_by(stored(weights)) == network
    for name in weights:
        if name.startswith("transformer_blocks.1.norm1.emb."):
            changed = weights | {name: weights[name] + 1}
            assert network.informed_by(stored(changed)).config.block_embedders, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_without_loss(dtype, tmp_path):
    theirs = their_dit(CONFIGS["learned variance"]).to(dtype)
    theirs.save_pretrained(tmp_path)
    with open_published(tmp_path) as published:
        network = ClassDiT.of_diffusers(published.config)
    params = read_all(network, tmp_path)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["final_layer.bias"], theirs.proj_out_2.bias.detach().float().numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm'"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"out_channels": 5}, "out_channels=5: must be in_channels=3 or twice as many"),
        ({"norm_eps": None}, "norm_eps=None: must be a number"),
        ({"num_layers": "many"}, "num_layers='many': must be a positive number"),
    ],
)
def test_a_config_that_is_no_published_dit_is_an_error_that_names_the_field(change, message):
    config = {"_class_name": ClassDiT.diffusers_class} | CONFIGS["learned variance"] | change
    with pytest.raises(ValueError, match=message):
        ClassDiT.of_diffusers(config)


def test_memory_is_one_parameter_and_one_tensor(tmp_path):
    """Of shards, the largest decides: twice its size is never reached."""
    theirs = their_dit(CONFIGS["learned variance"] | {"num_layers": 12, "num_attention_heads": 16})
    theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    shards = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    with open_published(tmp_path) as published:
        network = ClassDiT.of_diffusers(published.config)
        table = network.table()
        tracemalloc.start()
        try:
            largest = max(value.nbytes for _, value in names.read(table, published.dialect, published.source))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert largest < peak < 2 * max(shards) < sum(shards)
