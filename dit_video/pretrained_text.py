"""Published text encoders at work: opened by folder, and the cache of what they make of captions."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Key
from rich.console import Console

from dit_video import experiment as experiments
from dit_video.arrays import Text
from dit_video.checkpoint import weights_digest
from dit_video.data.text_cache import MANIFEST, Embeddings, TextCache, add_texts, read_text_manifest
from dit_video.experiment import Experiment, ExperimentError
from dit_video.export import names
from dit_video.export.families import clip, t5
from dit_video.export.source import open_published
from dit_video.nn.module import Definition, define, params_of
from dit_video.progress import counted
from dit_video.run_folder import other_values
from dit_video.sharding import Uneven, even_batch, fetch, make_mesh, partition_spec, place_whole
from dit_video.tasks.denoise import Denoise
from dit_video.text.clip import CLIPTextConfig, CLIPTextModel
from dit_video.text.pretrained import FrozenCLIP, FrozenT5, PretrainedText, embed
from dit_video.text.t5 import T5Config, T5Encoder
from dit_video.text.tokenizer import Tokenizer
from dit_video.user_cache import keep_compiled_programs

# Captions that go through the encoders at once, on all devices together.
_AT_ONCE = 16
_FOLDERS = ("model", "tokenizer")
# Fields of an encoder that say where it lies, and in what files.
_WHERE = (*_FOLDERS, "torch_files")


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
        self._text, self.mesh = text, mesh
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
        size = even_batch(_AT_ONCE, self.mesh)
        parts = [self._few(rows, size) for rows in _groups(captions, size)]
        return Text(*(np.concatenate(fields) for fields in zip(*parts)))

    def _few(self, captions: Sequence[str], size: int) -> Text:
        # One shape is compiled: a group that is not full is filled up with its last caption.
        cleaned = [self._text.cleaning(caption) for caption in captions]
        filled = cleaned + [cleaned[-1]] * (size - len(cleaned))
        tokens = {name: tokenizer(filled) for name, tokenizer in self._tokenizers.items()}
        with jax.set_mesh(self.mesh):
            found = self._embed(self._networks, place_whole(tokens, self.mesh))
        return jax.tree.map(lambda x: fetch(x)[: len(captions)], found)


def settings(text: PretrainedText) -> dict[str, Any]:
    """What `text` says of how captions are embedded, without where the encoders lie; JSON."""
    said = experiments.to_json(text)
    for name in text.encoders:
        said[name] = {field: value for field, value in said[name].items() if field not in _WHERE}
    return said


def _opened(name: str, encoder: FrozenCLIP | FrozenT5, text: PretrainedText, mesh: Mesh) -> nnx.Module:
    """The network in a folder, its weights of `text.precision` on the mesh."""
    family: ModuleType = clip if isinstance(encoder, FrozenCLIP) else t5
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
        config = None if published.config is None else family.of_transformers(published.config)
        if config is None:
            kind = "a text model of CLIP" if family is clip else "an encoder of T5 v1.1 or UMT5"
            raise ExperimentError(f"config.task.text.{name}.model={encoder.model!r}: holds no {kind} of transformers")
        if isinstance(config, CLIPTextConfig) and encoder.num_tokens > config.num_positions:
            raise ExperimentError(
                f"config.task.text.{name}.num_tokens={encoder.num_tokens}: the model has positions for "
                f"{config.num_positions}"
            )
        definition = define(lambda key: _network(config, dtype, key))
        try:
            table, source = family.table(config), family.tensors(published.source)
            return definition.bind(dict(placed(table, source, definition, published.dialect, dtype, mesh)))
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{encoder.model}: {error}") from error


def _network(config: CLIPTextConfig | T5Config, dtype: DTypeLike, key: Key[Array, ""]) -> CLIPTextModel | T5Encoder:
    """A text encoder with random weights."""
    if isinstance(config, CLIPTextConfig):
        return CLIPTextModel(config, dtype=dtype, rngs=nnx.Rngs(key))
    return T5Encoder(config, dtype=dtype, rngs=nnx.Rngs(key))


def placed(
    table: names.Table,
    source: names.Source,
    definition: Definition,
    dialect: names.Dialect,
    dtype: DTypeLike,
    mesh: Mesh,
) -> Iterator[tuple[str, Array]]:
    """Parameters one at a time, of `dtype`, so that of float32 no more is held than one of them.

    Raises:
        NamesMismatch: the tensors are not those of `table`; lists them.
    """
    names.check(table, dialect, source)
    for ours, value in names.read(table, dialect, source):
        try:
            spec = partition_spec(definition.axes[ours], value.shape, mesh)
        except Uneven:
            # Whole on every device: the encoder must not decide how the network it serves is split.
            spec = PartitionSpec()
        yield ours, jax.device_put(value.astype(dtype), NamedSharding(mesh, spec))


def encode_text(experiment: Experiment, *, captions: Sequence[str], overwrite: bool, console: Console) -> None:
    """Writes the text cache that `experiment.data.text` names, or adds what it lacks.

    It holds the captions of both splits of the source, the empty one, and `captions`.
    """
    cache, task = experiment.data.text, experiment.task
    if cache is None or not isinstance(task, Denoise) or task.text is None:
        field = "config.data.text" if cache is None else "config.task.text"
        raise ExperimentError(f"{field}: names no {'text cache' if cache is None else 'encoders'}; captions need it")
    keep_compiled_programs()
    encoders = TextEncoders(task.text, make_mesh(experiment.mesh))
    folder = Path(cache.directory)
    if overwrite and folder.exists():
        read_text_manifest(folder)  # an error unless it is a text cache: nothing else is ever deleted
        shutil.rmtree(folder)
    held: Embeddings | None = None
    if (folder / MANIFEST).exists():
        _check(cache, read_text_manifest(folder).provenance, encoders.provenance)
        held = dataclasses.replace(cache, digest=None).open()
    wanted = _distinct(experiment, captions, console)
    missing = [caption for caption in wanted if held is None or caption not in held]
    console.print(f"text cache: {folder} has {len(wanted) - len(missing)} of {len(wanted)} captions", highlight=False)
    groups = _groups(missing, even_batch(_AT_ONCE, encoders.mesh))
    shown = counted(groups, "captions", total=len(missing), unit="captions", size=len, console=console)
    add_texts(
        folder,
        ((group, encoders(group)) for group in shown),
        provenance=encoders.provenance,
        dtype=cache.dtype,
    )


def _distinct(experiment: Experiment, captions: Sequence[str], console: Console) -> list[str]:
    """Each caption once, in the order in which they are met, the empty one first."""
    found = dict.fromkeys(["", *captions])
    source = experiment.data.source
    for split, total in source.info().num_records.items():
        if total:
            records = counted(source.open(split), f"captions of {split}", total=total, unit="records", console=console)
            found |= dict.fromkeys(record.caption for record in records)
    return list(found)


def with_text(experiment: Experiment) -> tuple[Experiment, Text | None]:
    """The embedding of an empty caption, and the experiment with the digest of the cache that has it.

    None where the task reads no embedded text, or where no cache is named, so that it can be opened but not trained.

    Raises:
        ExperimentError: the cache was made otherwise than the task says; names the fields.
    """
    cache, task = experiment.data.text, experiment.task
    if cache is None:
        return experiment, None
    blank = task.condition.blank_nothing() if isinstance(task, Denoise) and task.condition is not None else None
    if not isinstance(task, Denoise) or not isinstance(blank, Text):
        raise ExperimentError("config.data.text: only a run on embedded text reads a text cache; leave it None")
    manifest = cache.manifest()
    held = (manifest.num_tokens, manifest.hidden_size, manifest.pooled_size)
    wanted = (*blank.tokens.shape[1:], blank.pooled.shape[1])
    if held != wanted:
        raise ExperimentError(
            f"config.task.condition: (num_tokens, hidden_size, pooled_size) = {wanted}, but embeddings in "
            f"{cache.directory} have {held}; say so there, or encode again"
        )
    if task.text is not None:
        _check(cache, manifest.provenance, {"encoders": settings(task.text)})
    data = dataclasses.replace(experiment.data, text=dataclasses.replace(cache, digest=manifest.digest))
    return dataclasses.replace(experiment, data=data), cache.open()([""])


def _check(cache: TextCache, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if lines := other_values(found, wanted, "this experiment"):
        raise ExperimentError(
            f"text cache {cache.directory} was not made for this experiment; these differ:\n"
            + "\n".join(lines)
            + "\nencode again: dit-video encode --config=EXPERIMENT --only=text --overwrite"
        )


def embeddings_of(experiment: Experiment, captions: Sequence[str], mesh: Mesh) -> Text:
    """Embeddings of captions: from the cache those that it has, the others from the encoders.

    Raises:
        ExperimentError: a caption is not in the cache, and no encoders are at hand; says what to do.
    """
    cache, task = experiment.data.text, experiment.task
    assert isinstance(task, Denoise), "only a denoiser reads text"
    held = None if cache is None else cache.open()
    missing = [caption for caption in dict.fromkeys(captions) if held is None or caption not in held]
    if not missing and held is not None:
        return held(captions)
    if task.text is None or _absent(task.text):
        where = "config.data.text=None: there is" if cache is None else f"{cache.directory}: has"
        why = "config.task.text=None" if task.text is None else f"{_absent(task.text)[0]} is no folder"
        raise ExperimentError(
            f"{where} no embedding of {missing[0]!r}, and the encoders are not at hand ({why}); name them in "
            "config.task.text, or add the caption where they are: "
            f"dit-video encode --config=EXPERIMENT --only=text --caption={missing[0]!r}"
        )
    encoders = TextEncoders(task.text, mesh)
    if held is None:
        return encoders(captions)
    assert cache is not None, "it is held"
    _check(cache, held.manifest.provenance, encoders.provenance)
    # Rounded as the cache rounds, so that a caption makes the same clip once it is there.
    fresh = dict(zip(missing, _rows(jax.tree.map(lambda x: _rounded(x, cache.dtype.dtype), encoders(missing)))))
    known = [fresh[caption] if caption in fresh else held([caption]) for caption in captions]
    return Text(*(np.concatenate(fields) for fields in zip(*known)))


def _absent(text: PretrainedText) -> list[str]:
    """Folders of encoders that are not there."""
    named = [getattr(encoder, field) for encoder in text.encoders.values() for field in _FOLDERS]
    return [folder for folder in named if not Path(folder).is_dir()]


def _rows(text: Text) -> list[Text]:
    return [Text(*(x[i : i + 1] for x in text)) for i in range(len(text.num_tokens))]


def _rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x


def _groups(captions: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(captions)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
