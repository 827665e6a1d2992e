"""Image to video with tokens of the first frame, as in Wan 2.1: what is published is imported, sampled and trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image
from published_text import save_t5
from rich.console import Console
from toys import small_mesh

from dit_video.cli.main import main
from dit_video.config.components import to_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.batch import Batch
from dit_video.distributed.sharding import place_whole, shard_frozen
from dit_video.dit.condition import TextCondition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import WanConfig
from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_image import CLIPVisionConfig
from dit_video.encoders.image import PretrainedImage
from dit_video.experiment import from_json
from dit_video.nn.module import define, params_of
from dit_video.run import workload
from dit_video.run.folder import read_experiment
from dit_video.run.frozen import FolderOpener
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.training.optimizer import EMA, AdamW
from dit_video.training.step import make_program

VISION = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 12}
SIZES = {"image_size": 12, "patch_size": 4, "hidden_act": "gelu"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A small Wan 2.1 of image to video, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("published") / "wan_i2v"
    save_t5(folder, hidden_size=12)
    torch.manual_seed(0)
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, **SIZES))
    with torch.no_grad():
        for weight in vision.parameters():
            weight.normal_(0, 0.3)
    vision.save_pretrained(folder / "image_encoder")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 12, "ffn_dim": 32, "num_layers": 1}
    image = {"in_channels": 36, "out_channels": 16, "image_dim": 8, "added_kv_proj_dim": 24}
    WanTransformer3DModel(**sizes, **image).save_pretrained(folder / "transformer")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(folder / "vae")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(
        folder / "scheduler"
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline"}))
    return folder


@pytest.fixture(scope="module")
def imported(pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "wan_i2v"
    assert main(["import", str(pipeline), f"--out={out}"]) == 0
    return out


@pytest.mark.slow
def test_a_pipeline_comes_with_its_image_encoder_and_continues_pictures(pipeline, imported, tmp_path):
    image = read_experiment(imported).task.image
    assert (image.model, image.encoder.hidden_size) == (f"{pipeline}/image_encoder", 8)
    words = ["--num_clips=1", "--num_steps=2", "--num_frames=5", "--size=16,32", "--guidance=3", "--text=a seven"]
    rng, made = np.random.default_rng(0), {}
    for name in ("one", "other"):
        Image.fromarray(rng.integers(0, 256, (16, 32, 3), np.uint8)).save(tmp_path / f"{name}.png")
        out = [f"--image={tmp_path / name}.png", f"--out={tmp_path / name}.gif", f"--npy={tmp_path / name}.npy"]
        assert main(["sample", f"--workdir={imported}", *words, *out]) == 0
        made[name] = np.load(tmp_path / f"{name}.npy")
    assert made["one"].shape == (1, 5, 16, 32, 3)
    assert np.any(made["one"] != made["other"])


def test_a_network_alone_needs_the_encoder_of_its_pipeline(pipeline, imported, tmp_path, capsys):
    alone = shutil.copytree(pipeline / "transformer", tmp_path / "alone" / "transformer")
    assert main(["import", str(alone), f"--codec={imported / 'vae'}", f"--out={tmp_path / 'run'}"]) == 1
    assert "Denoise.image=None: known.shown.image_size=8" in capsys.readouterr().err


def test_an_encoder_that_is_not_the_recorded_one_is_refused(pipeline, imported, tmp_path):
    experiment = read_experiment(imported)

    def with_image(experiment):
        image, _ = FolderOpener(experiment, small_mesh(), Console()).image(experiment.task.image)
        return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, image=image))

    opened = with_image(experiment)
    assert with_image(opened) == opened
    assert from_json(to_json(opened)) == opened

    def refused(message: str, error: type[Exception] = ExperimentError, **change) -> None:
        image = dataclasses.replace(opened.task.image, **change)
        task = dataclasses.replace(opened.task, image=image)
        with pytest.raises(error, match=message):
            with_image(dataclasses.replace(opened, task=task))

    refused("config.task.image.digest=000000000000", digest="0" * 64)
    refused("config.task.image.model='nowhere': is no folder", model="nowhere")
    refused("holds no vision transformer", model=str(pipeline / "text_encoder"))
    refused("config.task.image.encoder: ", encoder=dataclasses.replace(opened.task.image.encoder, depth=2))
    broken = Path(shutil.copytree(pipeline / "image_encoder", tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text()) | {"num_hidden_layers": 5}
    (broken / "config.json").write_text(json.dumps(config))
    deeper = dataclasses.replace(opened.task.image.encoder, depth=5)
    refused("(?s)broken: .*missing vision_model", ValueError, model=str(broken), encoder=deeper, digest=None)


ENCODER = CLIPVisionConfig(
    **{"hidden_size": 8, "depth": 3, "num_heads": 2, "mlp_size": 12, "activation": Activation.GELU},
    **{"image_size": 12, "patch_size": 4},
)
WORDS = TextCondition(hidden_size=8, depth=1, num_heads=2)


@pytest.fixture(scope="module")
def attending(denoise) -> Denoise:
    return dataclasses.replace(
        denoise,
        network=WanConfig(hidden_size=16, depth=1, num_heads=2, mlp_width=16, patch_size=(1, 1, 1)),
        condition=WORDS,
        known=FirstFrame(shown=AsChannels(image_size=8, grey_frames=False)),
        image=PretrainedImage(encoder=ENCODER, model="none"),
    )


@pytest.fixture(scope="module")
def batch(clips) -> Batch:
    return clips._replace(signals={"caption": np.full((8, 4), 65, np.uint8)})


def model_of(task: Denoise):
    definition, rng = define(task.init), np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


@pytest.mark.slow
def test_what_the_encoder_makes_of_the_first_frame_moves_the_clip_and_no_later_frame_does(attending, batch):
    rngs = jax.random.split(jax.random.key(3), 8)
    frozen = jax.jit(attending.blank)(jax.random.key(0))
    call = jax.jit(lambda frozen, batch: attending.validate(model_of(attending), frozen, batch, rngs)["x_0_error"])
    found = call(frozen, batch)
    deaf = frozen._replace(image=jax.tree.map(jnp.zeros_like, frozen.image))
    assert (np.abs(call(deaf, batch) - found) > 1e-6).all()
    moments = jax.jit(frozen.codec.moments)(batch.video)
    with pytest.raises(ValueError, match=r"config.task.image: its tokens are made of the pixels .* a latent cache"):
        call(frozen, batch._replace(video=None, moments=moments))
    # Of a batch that has both, the latents are the cached ones: the encoder alone sees the pixels.
    seen = call(frozen, batch._replace(moments=moments))
    later = np.concatenate([batch.video[:, :1], 255 - batch.video[:, 1:]], axis=1)
    np.testing.assert_array_equal(call(frozen, batch._replace(video=later, moments=moments)), seen)
    first = np.concatenate([255 - batch.video[:, :1], batch.video[:, 1:]], axis=1)
    assert (np.abs(call(frozen, batch._replace(video=first, moments=moments)) - seen) > 1e-6).all()


@pytest.mark.slow
def test_a_step_trains_every_parameter_where_the_encoder_is_split_over_devices(attending, batch):
    mesh = small_mesh(4, fsdp=2, tensor=2)
    program = make_program(attending, AdamW(), EMA(), num_steps=1, num_microbatches=1, mesh=mesh)
    frozen = jax.jit(attending.blank)(jax.random.key(0))
    split = jax.device_put(frozen, shard_frozen(frozen, mesh))
    kernel = split.image.blocks.up.kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (ENCODER.depth - 1, 4, 6)
    params = jax.device_put(params_of(model_of(attending)), jax.tree.map(lambda s: s.sharding, program.shapes.params))
    state = program.init(0)._replace(params=params)
    gradient, _ = program.gradient(state, split, place_whole(batch, mesh), 0)
    for name, value in gradient.items():
        assert float(np.abs(value).max()) > 0, name
    after, metrics = program.step(state, split, place_whole(batch, mesh), 0)
    assert int(after.step) == 1
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    planned = workload.abstract_frozen(attending, mesh).image.blocks.up.kernel.get_value()
    assert planned.sharding == kernel.sharding


def test_an_encoder_and_what_attends_to_it_come_together(attending):
    for change, message in (
        ({"image": None}, "Denoise.image=None: known.shown.image_size=8"),
        ({"known": FirstFrame(shown=AsChannels())}, "Denoise.image=.*: the network attends to no tokens of an image"),
        (
            {"known": FirstFrame(shown=AsChannels(image_size=9))},
            "hidden_size=8: .* known.shown.image_size=9; make them",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(attending, **change)
