"""Text embeddings of captions: made by published encoders, cached, and read from the cache."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from dit_video.arrays import Text
from dit_video.config.json_file import other_values
from dit_video.config.old_records import upgrade
from dit_video.config.paths import shell_word
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.data.signals import TEXT
from dit_video.data.text_cache import MANIFEST, Embeddings, TextCache, add_texts, read_text_manifest
from dit_video.distributed.sharding import even_batch, make_mesh
from dit_video.encoders.load_text_encoders import _AT_ONCE, _FOLDERS, TextEncoders, _groups, settings
from dit_video.encoders.text import PretrainedText
from dit_video.experiment import Experiment
from dit_video.progress import counted
from dit_video.run.compilation_cache import keep_compiled_programs


def encode_text(experiment: Experiment, *, captions: Sequence[str], overwrite: bool, console: Console) -> None:
    """Writes the text cache that `experiment.data.text` names, or adds what it lacks.

    It holds the captions of both splits of the source, the empty one, and `captions`.
    """
    cache, text = text_cache(experiment.data), experiment.task.encoders().text
    if cache is None or text is None:
        field = "config.data.signals.text" if cache is None else "config.task.text"
        raise ExperimentError(f"{field}: names no {'text cache' if cache is None else 'encoders'}; captions need it")
    keep_compiled_programs()
    encoders = TextEncoders(text, make_mesh(experiment.mesh))
    folder = Path(cache.directory)
    if overwrite and folder.exists():
        read_text_manifest(folder)  # an error unless it is a text cache: nothing else is ever deleted
        shutil.rmtree(folder)
    stored: Embeddings | None = None
    if (folder / MANIFEST).exists():
        existing = read_text_manifest(folder).provenance
        _check(cache, existing, encoders.provenance_as(existing))
        stored = dataclasses.replace(cache, digest=None).embeddings()
    captions = _distinct(experiment, captions, console)
    missing = [caption for caption in captions if stored is None or caption not in stored]
    console.print(
        f"text cache: {folder} has {len(captions) - len(missing)} of {len(captions)} captions", highlight=False
    )
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


def text_cache(data: Data) -> TextCache | None:
    """The cache of embedded captions that the data name."""
    cache = data.signals.get(TEXT)
    return cache if isinstance(cache, TextCache) else None


def open_cache(experiment: Experiment, sizes: tuple[int, ...]) -> tuple[Data, Text | None]:
    """The data with the digest of their text cache, and the embedding of an empty caption in it.

    None where no cache is named, so that the run can be opened but not trained.

    Args:
        sizes: (tokens, width, pooled width) that the task reads.

    Raises:
        ExperimentError: the cache was made otherwise than the task says; names the fields.
    """
    data, cache = experiment.data, text_cache(experiment.data)
    if cache is None:
        return data, None
    manifest = cache.manifest()
    stored = (manifest.num_tokens, manifest.hidden_size, manifest.pooled_size)
    if stored != sizes:
        raise ExperimentError(
            f"config.task.condition: (num_tokens, hidden_size, pooled_size) = {sizes}, but embeddings in "
            f"{cache.directory} have {stored}; say so there, or encode again"
        )
    encoders = experiment.task.encoders().text
    if encoders is not None:
        _check(cache, manifest.provenance, {"encoders": settings(encoders)})
    named = dataclasses.replace(cache, digest=manifest.digest)
    return dataclasses.replace(data, signals={**data.signals, TEXT: named}), cache.embeddings()([""])


def _check(cache: TextCache, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    if lines := other_values(upgrade(actual), expected, "this experiment"):
        raise ExperimentError(
            f"text cache {cache.directory} was not made for this experiment; these differ:\n"
            + "\n".join(lines)
            + "\nencode again: dit-video encode --config=EXPERIMENT --only=text --overwrite"
        )


def embeddings_of(experiment: Experiment, captions: Sequence[str], mesh: Mesh) -> Text:
    """Embeddings of captions: from the cache those that it has, the others from the encoders.

    Raises:
        ExperimentError: a caption is not in the cache, and there are no encoders; says what to do.
    """
    cache, text = text_cache(experiment.data), experiment.task.encoders().text
    stored = None if cache is None else cache.embeddings()
    missing = [caption for caption in dict.fromkeys(captions) if stored is None or caption not in stored]
    if not missing and stored is not None:
        return stored(captions)
    if text is None or _absent(text):
        where = "config.data.signals: there is" if cache is None else f"{cache.directory}: has"
        why = "config.task.text=None" if text is None else f"{_absent(text)[0]} is no folder"
        raise ExperimentError(
            f"{where} no embedding of {missing[0]!r}, and its encoders are not here ({why}); name them in "
            "config.task.text, or add the caption where they are: "
            f"dit-video encode --config=EXPERIMENT --only=text --caption={shell_word(missing[0])}"
        )
    encoders = TextEncoders(text, mesh)
    if stored is None or cache is None:
        return encoders(captions)
    existing = stored.manifest.provenance
    _check(cache, existing, encoders.provenance_as(existing))
    # Rounded as the cache rounds, so that a caption makes the same clip once it is there.
    fresh = dict(zip(missing, _rows(jax.tree.map(lambda x: _rounded(x, cache.dtype.dtype), encoders(missing)))))
    known = [fresh[caption] if caption in fresh else stored([caption]) for caption in captions]
    return Text(*(np.concatenate(fields) for fields in zip(*known)))


def _absent(text: PretrainedText) -> list[str]:
    """Folders of encoders that are not there."""
    named = [getattr(encoder, field) for encoder in text.encoders.values() for field in _FOLDERS]
    return [folder for folder in named if not Path(folder).is_dir()]


def _rows(text: Text) -> list[Text]:
    return [Text(*(x[i : i + 1] for x in text)) for i in range(len(text.num_tokens))]


def _rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x
