"""Parts of a pipeline that are no part of a run: recorded, copied as they were, and refused when they are not."""

import json
from pathlib import Path

import pytest

from dit_video.weights.pipeline import PipelineParts, copy_parts, parts_of, read_parts, write_parts

INDEX = {
    "_class_name": "AnyPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "image_encoder": [None, None],
    "transformer": ["diffusers", "Any"],
    "vae": ["diffusers", "Any"],
    "text_encoder": ["transformers", "Any"],
    "../outside": ["transformers", "Any"],
    "boundary_ratio": 0.9,
}


@pytest.fixture
def pipeline(tmp_path) -> Path:
    folder = tmp_path / "pipeline"
    for name in ("scheduler", "transformer", "vae", "unnamed", "text_encoder", "../outside"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(name)
    (folder / "text_encoder" / ".cache").write_text("")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def test_parts_are_those_of_the_index_without_what_a_run_holds(pipeline, tmp_path):
    parts = parts_of(pipeline)
    assert list(parts.sha256) == ["model_index.json", "scheduler/config.json", "text_encoder/config.json"]
    write_parts(parts, tmp_path)
    assert read_parts(tmp_path) == parts
    assert read_parts(pipeline) is None


def test_copies_are_the_files_that_were_recorded(pipeline, tmp_path):
    copy_parts(parts_of(pipeline), tmp_path / "copy")
    copied = {str(p.relative_to(tmp_path / "copy")): p.read_bytes() for p in (tmp_path / "copy").rglob("*.json")}
    assert copied == {name: (pipeline / name).read_bytes() for name in parts_of(pipeline).sha256}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "scheduler" / "config.json").write_text("else"),
            "is another file than at the import",
        ),
        (lambda folder: (folder / "scheduler" / "config.json").unlink(), "was there at the import and is not now"),
        (lambda folder: folder.rename(folder.with_name("moved")), "pipeline, which is not there now: name the folder"),
    ],
)
def test_what_is_not_as_it_was_is_one_line(spoil, message, pipeline, tmp_path):
    parts = parts_of(pipeline)
    spoil(pipeline)
    with pytest.raises(ValueError, match=message) as error:
        copy_parts(parts, tmp_path / "copy")
    assert "\n" not in str(error.value)


def test_a_run_from_elsewhere_asks_where_the_pipeline_is(tmp_path):
    with pytest.raises(ValueError, match=r"in a folder of another machine: name .* with --pipeline"):
        copy_parts(PipelineParts(None, {}), tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../passwd"])
def test_a_record_leads_nowhere_else(name, tmp_path):
    write_parts(PipelineParts(tmp_path, {name: ""}), tmp_path)
    with pytest.raises(ValueError, match="must be a path below the pipeline"):
        read_parts(tmp_path)
