"""Opening pretrained text encoders from their folders, and embedding captions with them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from dit_video.arrays import Text
from dit_video.config.components import to_json
from dit_video.config.user_file import ExperimentError
from dit_video.distributed.sharding import even_batch, fetch, place_whole
from dit_video.encoders import clip_text_names, t5_names
from dit_video.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from dit_video.encoders.mesh_loading import load_params
from dit_video.encoders.t5 import T5Config, T5Encoder
from dit_video.encoders.text import FrozenCLIP, FrozenT5, PretrainedText, embed
from dit_video.encoders.tokenizer import Tokenizer
from dit_video.nn.module import define, params_of
from dit_video.weights import names
from dit_video.weights.digest import name_as
from dit_video.weights.source import open_published

# Captions that go through the encoders at once, on all devices together.
_AT_ONCE = 16
_FOLDERS = ("model", "tokenizer")
# Fields of an encoder that say where it lies, and in what files.
_WHERE = (*_FOLDERS, "torch_files")


class TextEncoders:
    """Pretrained text encoders with their weights on a mesh.

    Attributes:
        provenance: what decides the embedding of a caption, wherever the encoders lie; JSON.
    """

    def __init__(self, text: PretrainedText, mesh: Mesh):
        """Opens the folders that `text` names.

        Raises:
            FileNotFoundError: a folder is not there, or lacks a file.
            ValueError: it holds another model than its field is for, or weights that are not its own; names it.
        """
        self._text, self.mesh = text, mesh
        self._networks = {name: _opened(name, encoder, text, mesh) for name, encoder in text.encoders.items()}
        self._tokenizers = {
            name: Tokenizer(Path(encoder.tokenizer), encoder.num_tokens) for name, encoder in text.encoders.items()
        }
        self._embed = jax.jit(lambda networks, tokens: embed(text, networks, tokens))
        self.provenance = self.provenance_as({})

    def provenance_as(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """`provenance`, with digests in the form that the recorded one of a cache has, to be compared with it."""
        made = {
            name: {
                "weights": name_as(_weights_in(recorded, name), params_of(network)),
                "tokenizer": self._tokenizers[name].digest,
            }
            for name, network in self._networks.items()
        }
        return {"encoders": settings(self._text), "made": made}

    def __call__(self, captions: Sequence[str]) -> Text:
        """Embeds any number of captions; float32, on the host."""
        size = even_batch(_AT_ONCE, self.mesh)
        parts = [self._few(rows, size) for rows in _groups(captions, size)]
        return Text(*(np.concatenate(fields) for fields in zip(*parts)))

    def _few(self, captions: Sequence[str], size: int) -> Text:
        # One shape is compiled: a group that is not full is filled up with its last caption.
        cleaned = [self._text.cleaning(caption) for caption in captions]
        filled = cleaned + [cleaned[-1]] * (size - len(cleaned))
        tokens = {name: tokenizer(filled) for name, tokenizer in self._tokenizers.items()}
        with jax.set_mesh(self.mesh):
            embedding = self._embed(self._networks, place_whole(tokens, self.mesh))
        return jax.tree.map(lambda x: fetch(x)[: len(captions)], embedding)


def _weights_in(provenance: Mapping[str, Any], name: str) -> str | None:
    """Digest of the weights of an encoder in the provenance of a cache, which may be a stranger's."""
    value: Any = provenance
    for key in ("made", name, "weights"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def settings(text: PretrainedText) -> dict[str, Any]:
    """Settings that determine an embedding, without the paths of the encoders; JSON."""
    described = to_json(text)
    for name in text.encoders:
        described[name] = {field: value for field, value in described[name].items() if field not in _WHERE}
    return described


def _opened(name: str, encoder: FrozenCLIP | FrozenT5, text: PretrainedText, mesh: Mesh) -> nnx.Module:
    """Opens the network in a folder, its weights in `text.precision` on the mesh."""
    family: ModuleType = clip_text_names if isinstance(encoder, FrozenCLIP) else t5_names
    dtype = text.precision.dtype
    for field in _FOLDERS:
        if not Path(getattr(encoder, field)).is_dir():
            raise ExperimentError(
                f"config.task.text.{name}.{field}={getattr(encoder, field)!r}: is no folder; name that of the "
                f"published encoder with --config.task.text.{name}.{field}=FOLDER"
            )
    folder = Path(encoder.model)
    digests = {folder / file: sha256 for file, sha256 in encoder.torch_files}
    with open_published(folder, digests=digests) as published:
        try:
            config = None if published.config is None else family.of_transformers(published.config)
        except ValueError as error:
            raise ExperimentError(f"{folder}: {error}") from error
        if config is None:
            kind = "a text model of CLIP" if family is clip_text_names else "an encoder of T5 v1.1 or UMT5"
            raise ExperimentError(f"config.task.text.{name}.model={encoder.model!r}: holds no {kind} of transformers")
        if isinstance(config, CLIPTextConfig) and encoder.num_tokens > config.num_positions:
            raise ExperimentError(
                f"config.task.text.{name}.num_tokens={encoder.num_tokens}: the model has positions for "
                f"{config.num_positions}"
            )
        definition = define(lambda key: _network(config, dtype, key))
        try:
            table, source = family.table(config), family.tensors(published.source)
            return definition.bind(dict(load_params(table, source, definition, published.dialect, dtype, mesh)))
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{encoder.model}: {error}") from error


def _network(config: CLIPTextConfig | T5Config, dtype: DTypeLike, key: Key[Array, ""]) -> CLIPTextModel | T5Encoder:
    """A text encoder with random weights."""
    if isinstance(config, CLIPTextConfig):
        return CLIPTextModel(config, dtype=dtype, rngs=nnx.Rngs(key))
    return T5Encoder(config, dtype=dtype, rngs=nnx.Rngs(key))


def _groups(captions: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(captions)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
