"""Published text encoders at work: opened by folder, and the cache of what they make of captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dit_video import experiment as experiments
from dit_video.arrays import Text
from dit_video.checkpoint import weights_digest
from dit_video.experiment import ExperimentError
from dit_video.export import names
from dit_video.export.families import clip, t5
from dit_video.export.source import open_published
from dit_video.nn.module import params_of
from dit_video.sharding import even_batch, fetch, place_whole
from dit_video.text.clip import CLIPTextConfig
from dit_video.text.pretrained import FrozenCLIP, FrozenT5, PretrainedText, embed
from dit_video.text.tokenizer import Tokenizer

# Captions that go through the encoders at once, on all devices together.
_AT_ONCE = 16
_FOLDERS = ("model", "tokenizer")


class TextEncoders:
    """Published text encoders with their weights on a mesh.

    Attributes:
        provenance: what decides the embedding of a caption, wherever the encoders lie; JSON.
    """

    def __init__(self, text: PretrainedText, mesh: Mesh):
        """Opens the folders that `text` names.

        Raises:
            FileNotFoundError: a folder is not there, or lacks a file.
            ValueError: it holds another model than its field is for, or weights that are not its own; names it.
        """
        self._text, self._mesh = text, mesh
        self._networks = {name: _opened(name, encoder, text, mesh) for name, encoder in text.encoders.items()}
        self._tokenizers = {
            name: Tokenizer(Path(encoder.tokenizer), encoder.num_tokens) for name, encoder in text.encoders.items()
        }
        self._embed = jax.jit(lambda networks, tokens: embed(text, networks, tokens))
        made = {
            name: {"weights": weights_digest(params_of(network)), "tokenizer": self._tokenizers[name].digest}
            for name, network in self._networks.items()
        }
        self.provenance = {"encoders": settings(text), "made": made}

    def __call__(self, captions: Sequence[str]) -> Text:
        """Embeddings of any number of captions, float32, on the host."""
        size = even_batch(_AT_ONCE, self._mesh)
        parts = [self._few(rows, size) for rows in _groups(captions, size)]
        return Text(*(np.concatenate(fields) for fields in zip(*parts)))

    def _few(self, captions: Sequence[str], size: int) -> Text:
        # One shape is compiled: a group that is not full is filled up with its last caption.
        cleaned = [self._text.cleaning(caption) for caption in captions]
        filled = cleaned + [cleaned[-1]] * (size - len(cleaned))
        tokens = {name: tokenizer(filled) for name, tokenizer in self._tokenizers.items()}
        with jax.set_mesh(self._mesh):
            found = self._embed(self._networks, place_whole(tokens, self._mesh))
        return jax.tree.map(lambda x: fetch(x)[: len(captions)], found)


def settings(text: PretrainedText) -> dict[str, Any]:
    """What `text` says of how captions are embedded, without where the encoders lie; JSON."""
    said = experiments.to_json(text)
    for name in text.encoders:
        said[name] = {field: value for field, value in said[name].items() if field not in _FOLDERS}
    return said


def _opened(name: str, encoder: FrozenCLIP | FrozenT5, text: PretrainedText, mesh: Mesh) -> nnx.Module:
    """The network in a folder, its weights of `text.precision` on the mesh."""
    family, dtype = (clip if isinstance(encoder, FrozenCLIP) else t5), text.precision.dtype
    with open_published(Path(encoder.model)) as published:
        config = None if published.config is None else family.of_transformers(published.config)
        if config is None:
            kind = "a text model of CLIP" if family is clip else "an encoder of T5 v1.1 or UMT5"
            raise ExperimentError(f"config.task.text.{name}.model={encoder.model!r}: holds no {kind} of transformers")
        if isinstance(config, CLIPTextConfig) and encoder.num_tokens > config.num_positions:
            raise ExperimentError(
                f"config.task.text.{name}.num_tokens={encoder.num_tokens}: the model has {config.num_positions} positions"
            )
        definition, table = _definition(config, dtype), _table(config)
        source = family.tensors(published.source)
        try:
            names.check(table, published.dialect, source)
            shardings = definition.shardings(mesh)
            params = {
                ours: jax.device_put(value.astype(dtype), shardings[ours])
                for ours, value in names.read(table, published.dialect, source)
            }
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{encoder.model}: {error}") from error
    return definition.bind(params)
