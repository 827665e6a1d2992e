"""Export of a whole diffusers pipeline: denoiser and VAE of a run, and the other parts of the pipeline it came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.config.components import diff
from dit_video.config.json_file import in_short, write_json
from dit_video.export.diffusers_folder import Parity, provenance, write_diffusers
from dit_video.export.folder import README
from dit_video.export.weights import Content
from dit_video.published.recognise import denoiser_family, vae_family
from dit_video.published.scheduler import read_scheduler
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.weights.folder import PIPELINE, read_json
from dit_video.weights.pipeline import DENOISER, VAE, PipelineParts, copy_parts, named_parts

SCHEDULER = Path("scheduler", "scheduler_config.json")
# Field of the index in which a pipeline of classes lists their names by label.
_CLASS_NAMES = "id2label"


@dataclasses.dataclass(frozen=True)
class WrittenPipeline:
    """What was written of a pipeline.

    Attributes:
        compared: denoiser and VAE with the run, by the names of their folders.
        copied: names of the parts that are as they were.
        notes: where the pipeline's own parts differ from what the run does.
    """

    compared: Mapping[str, Parity]
    copied: Sequence[str]
    notes: Sequence[str]


def write_pipeline(
    content: Content, folder: Path, parts: PipelineParts, dtype: str, class_names: Sequence[str]
) -> WrittenPipeline:
    """Writes a folder that `DiffusionPipeline.from_pretrained` loads.

    Args:
        dtype: of the denoiser's weights; those of the VAE are float32, as their loss of precision is seen in pictures.
        class_names: of the run's data by label; empty where they have none.

    Raises:
        ValueError: the pipeline has other classes than the run's networks are of, or its parts are not there as they
            were recorded, or whatever `write_diffusers` refuses.
        ExportMismatch: as `write_diffusers`.
    """
    assert content.denoiser is not None
    task = content.denoiser.task
    copy_parts(parts, folder)
    index = read_json(folder / PIPELINE)
    contents = {DENOISER: (content, dtype), VAE: (dataclasses.replace(content, denoiser=None), "float32")}
    classes = {DENOISER: denoiser_family(task).diffusers_class, VAE: vae_family(content.codec).diffusers_class}
    for name, kind in classes.items():
        if (theirs := index.get(name, ["diffusers", kind])) != ["diffusers", kind]:
            raise ValueError(f"{PIPELINE} of the pipeline: {name}={theirs}: the network of this run is a {kind}")
        index[name] = ["diffusers", kind]
    if _CLASS_NAMES in index and class_names:
        index[_CLASS_NAMES] = {str(label): name for label, name in enumerate(class_names)}
    if absent := [name for name in named_parts(index) if name not in classes and not (folder / name).is_dir()]:
        raise ValueError(
            f"the pipeline in {parts.folder} was imported without {', '.join(absent)}, which its {PIPELINE} names: "
            "download all of it and import again, or --pipeline=none writes the network alone"
        )
    write_json(folder / PIPELINE, index)
    compared = {}
    for name, (part, kind) in contents.items():
        (folder / name).mkdir()
        compared[name] = write_diffusers(part, folder / name, kind)
    (folder / README).write_text(_model_card(content, index), encoding="utf-8")
    copied = sorted({Path(name).parts[0] for name in parts.sha256} - {PIPELINE})
    return WrittenPipeline(compared, copied, _scheduler_notes(folder / SCHEDULER, task))


def _scheduler_notes(path: Path, task: Denoise) -> list[str]:
    """Lines for what the pipeline's scheduler says otherwise than the run's objective."""
    theirs = read_scheduler(path, task.objective).objective
    return [
        f"the pipeline's scheduler has {field} {there}, the run {here}: change {SCHEDULER} if samples are to be as here"
        for field, values in diff(theirs, task.objective).items()
        for there, here in [in_short(*values)]
    ]


def _model_card(content: Content, index: Mapping[str, Any]) -> str:
    origin = content.origin
    return f"""---
library_name: diffusers
tags: [dit-video]
---
# {origin.run}

{provenance(origin, "diffusers")}
`{DENOISER}` and `{VAE}` are the run's; all other parts are those of the pipeline that it was made of.

```python
import diffusers

pipeline = diffusers.DiffusionPipeline.from_pretrained(".")  # a {index.get("_class_name")}
```
"""
