"""Published text encoders at work: opened by folder, and the cache of what they make of captions."""

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
from dit_video.config.user_file import ExperimentError
from dit_video.data.text_cache import MANIFEST, Embeddings, TextCache, add_texts, read_text_manifest
from dit_video.distributed.sharding import even_batch, make_mesh
from dit_video.encoders.open_text import _AT_ONCE, _FOLDERS, TextEncoders, _groups, settings
from dit_video.encoders.text import PretrainedText
from dit_video.experiment import Experiment
from dit_video.progress import counted
from dit_video.run.compiled import keep_compiled_programs
from dit_video.tasks.denoise import Denoise


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
    blank = task.condition.blank_null() if isinstance(task, Denoise) and task.condition is not None else None
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
