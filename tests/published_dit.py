"""A small DiT with random weights in both dialects, from which files of all kinds are made."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from dit_video.published.dit import ClassDiT
from dit_video.published.recognise import recognise_within
from dit_video.weights import names
from dit_video.weights.folder import CONFIG, WEIGHTS
from dit_video.weights.names import Dialect
from dit_video.weights.source import open_published

Tensors = dict[str, np.ndarray]

# As many heads as official weights of this width are taken to have, for shapes do not tell.
SIZES = {"num_attention_heads": 4, "attention_head_dim": 3, "num_layers": 2, "sample_size": 6}
SAVED = {"_class_name": "DiTTransformer2DModel", "out_channels": 8, "num_embeds_ada_norm": 10, **SIZES}


def tensors(dialect: Dialect) -> Tensors:
    """Those of a network with random weights."""
    return dict(_tensors(dialect))


@functools.cache
def _tensors(dialect: Dialect) -> Tensors:
    rng = np.random.default_rng(0)
    network = ClassDiT.of_diffusers(SAVED)
    params = {n: 0.1 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}
    return {n: np.ascontiguousarray(x) for n, x in names.write(network.table(), dialect, params)}


def as_torch(value: np.ndarray) -> torch.Tensor:
    """The same numbers, of torch's type of the same name."""
    bits = torch.from_numpy(np.array(value, order="C").view(f"u{value.dtype.itemsize}").reshape(value.shape))
    return bits.view(getattr(torch, str(value.dtype)))


def save(weights: Mapping[str, np.ndarray], path: Path) -> Path:
    """Saves safetensors of any type."""
    path.parent.mkdir(exist_ok=True, parents=True)
    safetensors.torch.save_file({name: as_torch(value) for name, value in weights.items()}, path)
    return path


def publish(dialect: Dialect, weights: Mapping[str, np.ndarray], folder: Path) -> Path:
    """Saves weights as they are published in a dialect: a folder of diffusers, or a file of official code."""
    if dialect is Dialect.OFFICIAL:
        return save(weights, folder / "official.safetensors")
    save(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(SAVED))
    return folder


def read(path: Path, **options) -> tuple[Tensors, tuple[str, ...]]:
    """Our parameters of published weights, and what is noted of them."""
    with open_published(path, **options) as published:
        recognised = recognise_within(published, None)
        if recognised is None:
            raise ValueError("of no family")
        network, published = recognised
        names.check(network.table(), published.dialect, published.source)
        return dict(names.read(network.table(), published.dialect, published.source)), published.notes


def expected(dialect: Dialect, weights: Mapping[str, np.ndarray]) -> Tensors:
    """Our parameters of weights, each of which is first made float32."""
    source = {n: names.StoredTensor(x.shape, x.dtype, lambda x=x: x.astype(np.float32)) for n, x in weights.items()}
    return dict(names.read(ClassDiT.of_diffusers(SAVED).table(), dialect, source))


def assert_same(actual: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert actual.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_array_equal(actual[name].view(np.uint32), value.view(np.uint32), err_msg=name, strict=True)
