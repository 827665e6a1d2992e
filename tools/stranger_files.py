"""Fuzzing cases that strangers publish: configs with their weights, cards, tokenizers, schedulers, tars and arrays.

As in hostile_files.py a case is a function of its family and number; it is read by what a command reads it with.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer as Whole
from tokenizers import models, pre_tokenizers, processors

from dit_video.diffusion.objective import Gaussian, UniformLevels, rectified_flow
from dit_video.diffusion.path import DiscreteBetas
from dit_video.diffusion.prediction import Epsilon
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.encoders import clip_text_names, t5_names
from dit_video.encoders.load_text_encoders import TextEncoders
from dit_video.encoders.text import FrozenCLIP, FrozenT5, PretrainedText
from dit_video.encoders.tokenizer import Tokenizer
from dit_video.evaluation.card import differing_scale, read_card, table
from dit_video.ingest.source_files import files, list_files
from dit_video.ingest.video_folder import open_videos
from dit_video.progress import Terminal
from dit_video.published.recognise import DENOISERS, VAES
from dit_video.published.scheduler import read_scheduler
from dit_video.run.import_weights import import_run
from dit_video.weights import names
from dit_video.weights.files import read_tensors, write_safetensors
from dit_video.weights.folder import CONFIG, PIPELINE, WEIGHTS
from dit_video.weights.names import Dialect, Table
from tools.hostile_files import Family, Reader, spoiled, spoiled_json

# Counts that claim what the tensors do not have.
_CLAIMS = (300, 1000, 3000, 10**5, 10**6, 10**7, 10**9, 10**12, 10**30)
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "sample_size": 4, "patch_size": 2}
_VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 4}
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_DOWN_3D, _UP_3D = "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"
# Small networks of every published class, as diffusers writes their config.json.
_CONFIGS: tuple[dict[str, Any], ...] = (
    {"_class_name": "DiTTransformer2DModel", "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10, **_HEADS},
    {
        **{"_class_name": "LatteTransformer3DModel", "in_channels": 4, "out_channels": 8, "caption_channels": 8},
        **{"cross_attention_dim": 24, "video_length": 2, "activation_fn": "gelu-approximate", "attention_bias": True},
        **{"norm_elementwise_affine": False, "norm_eps": 1e-6, "norm_type": "ada_norm_single", **_HEADS},
    },
    {
        **{"_class_name": "SD3Transformer2DModel", "in_channels": 4, "out_channels": 4, "caption_projection_dim": 24},
        **{"joint_attention_dim": 8, "pooled_projection_dim": 8, "pos_embed_max_size": 6, **_HEADS},
    },
    {
        **{"_class_name": "WanTransformer3DModel", "in_channels": 4, "out_channels": 4, "ffn_dim": 16, "text_dim": 8},
        **_HEADS,
        **{"patch_size": [1, 2, 2], "freq_dim": 256},
    },
    {
        **{"_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "layers_per_block": 1},
        **{"down_block_types": [_DOWN] * 2, "up_block_types": [_UP] * 2, "scaling_factor": 0.2, "sample_size": 16},
        **_VAE,
    },
    {
        **{"_class_name": "AutoencoderKLWan", "base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1},
        **{"temperal_downsample": [True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
    },
    {
        **{"_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1},
        **{"down_block_types": [_DOWN_3D] * 4, "up_block_types": [_UP_3D] * 4, "temporal_compression_ratio": 4},
        **{"scaling_factor": 0.7, **_VAE},
    },
)
_TEXT_CONFIGS: tuple[dict[str, Any], ...] = (
    {
        **{"model_type": "umt5", "architectures": ["UMT5EncoderModel"], "feed_forward_proj": "gated-gelu"},
        **{"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2},
        **{"relative_attention_num_buckets": 4, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6},
    },
    {
        **{"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "hidden_act": "gelu"},
        **{"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 8, "eos_token_id": 2, "max_position_embeddings": 16, "layer_norm_eps": 1e-5},
    },
)


def _claiming(content: Any, rng: np.random.Generator) -> bytes:
    """JSON of a config, in half of all cases with one or two counts that claim much; else spoiled in any way."""
    if rng.random() < 0.5:
        return spoiled_json(content, rng)
    counts = [name for name, value in content.items() if isinstance(value, int | list) and value is not True]
    claims = {}
    for name in rng.choice(counts, size=rng.integers(1, 3)):
        claim = _CLAIMS[rng.integers(len(_CLAIMS))]
        claims[name] = claim if not isinstance(content[name], list) else content[name] * min(claim, 10**4)
    return json.dumps({**content, **claims}).encode()


def _write_weights(path: Path, rows: Table, dialect: Dialect) -> None:
    rng = np.random.default_rng(0)
    params = {
        row.ours: rng.standard_normal((row.num_layers, *row.our_shape) if row.stacked else row.our_shape, np.float32)
        for row in rows.rows
    }
    tensors = {name: np.ascontiguousarray(x) for name, x in names.write(rows, dialect, params)}
    write_safetensors(tensors, path, metadata={"format": "pt"})


def _configs(folder: Path) -> Reader:
    """Networks of diffusers with their weights, imported as runs; denoisers with a small VAE's."""
    good = []
    for number, config in enumerate(_CONFIGS):
        where = folder / f"network{number}"
        where.mkdir()
        network = next(filter(None, (family.of_diffusers(config) for family in (*DENOISERS, *VAES))))
        _write_weights(where / WEIGHTS, network.table(), Dialect.DIFFUSERS)
        (where / CONFIG).write_text(json.dumps(config))
        good.append(where)
    codec = folder / "codec"
    codec.mkdir()
    import_run(good[4], codec, out=codec, experiment=None)

    def make(case: int) -> Path:
        where = good[case % len(good)]
        rng = np.random.default_rng((5, case))
        (where / CONFIG).write_bytes(_claiming(_CONFIGS[case % len(good)], rng))
        return where / CONFIG

    def read(path: Path) -> None:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        import_run(path.parent, run, out=run, experiment=None, codec=codec)

    return Reader(make=make, read=read)


def _text_configs(folder: Path) -> Reader:
    """Text encoders of transformers with their weights and tokenizers, opened on a mesh."""
    good = []
    for number, config in enumerate(_TEXT_CONFIGS):
        where = folder / f"encoder{number}"
        where.mkdir()
        family: Any = clip_text_names if config["model_type"].startswith("clip") else t5_names
        _write_weights(where / "model.safetensors", family.table(family.of_transformers(config)), Dialect.TRANSFORMERS)
        _save_tokenizer(where)
        (where / CONFIG).write_text(json.dumps(config))
        good.append(where)
    mesh = make_mesh(MeshShape())

    def make(case: int) -> Path:
        where = good[case % len(good)]
        (where / CONFIG).write_bytes(_claiming(_TEXT_CONFIGS[case % len(good)], np.random.default_rng((6, case))))
        return where / CONFIG

    def read(path: Path) -> None:
        here = str(path.parent)
        is_clip = here.endswith("1")
        clip = FrozenCLIP(model=here, tokenizer=here, num_tokens=8)
        text = (
            PretrainedText(clip_l=clip)
            if is_clip
            else PretrainedText(t5=FrozenT5(model=here, tokenizer=here, num_tokens=8))
        )
        TextEncoders(text, mesh)
        jax.clear_caches()

    return Reader(make=make, read=read)


_VOCABULARY = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "])}


def _save_tokenizer(folder: Path) -> None:
    whole = Whole(models.BPE({**_VOCABULARY, "ab": 40, "abc": 41}, [("a", "b"), ("ab", "c")], unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "model_max_length": 8}))


def _tokenizers(folder: Path) -> Reader:
    """Tokenizers in one file, and as vocabulary and merges; each of their files is spoiled in turn."""
    whole, apart = folder / "whole", folder / "apart"
    whole.mkdir()
    _save_tokenizer(whole)
    apart.mkdir()
    begin, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {**_VOCABULARY, begin: 31, end: 32, "ab": 33, "ab</w>": 34}
    (apart / "vocab.json").write_text(json.dumps(vocabulary))
    (apart / "merges.txt").write_text("#version: 0.2\na b\n")
    (apart / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    parts = [path for where in (whole, apart) for path in sorted(where.iterdir())]
    contents = {path: path.read_bytes() for path in parts}

    def make(case: int) -> Path:
        for path, content in contents.items():
            path.write_bytes(content)
        path, rng = parts[case % len(parts)], np.random.default_rng((7, case))
        is_json = path.suffix == ".json"
        path.write_bytes(spoiled_json(json.loads(contents[path]), rng) if is_json else spoiled(contents[path], rng))
        return path

    def read(path: Path) -> None:
        Tokenizer(path.parent, 16)(["a cab", "", "abc " * 40, "\ud800"])

    return Reader(make=make, read=read)


_PATHS: tuple[tuple[Mapping[str, Any], Gaussian], ...] = (
    (
        {
            **{"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
            **{"num_train_timesteps": 1000, "prediction_type": "epsilon", "timestep_spacing": "leading"},
            **{"clip_sample": False, "steps_offset": 0, "trained_betas": None},
        },
        Gaussian(path=DiscreteBetas(), prediction=Epsilon(), times=UniformLevels()),
    ),
    (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000},
        rectified_flow(),
    ),
    (
        {
            **{"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "use_flow_sigmas": True},
            **{"prediction_type": "flow_prediction", "num_train_timesteps": 1000, "solver_order": 2},
        },
        rectified_flow(),
    ),
)


def _schedulers(folder: Path) -> Reader:
    def make(case: int) -> Path:
        number = case % len(_PATHS)
        path = folder / f"{number}-scheduler_config.json"
        path.write_bytes(spoiled_json(dict(_PATHS[number][0]), np.random.default_rng((8, case))))
        return path

    return Reader(make=make, read=lambda path: _discard(read_scheduler(path, _PATHS[int(path.name[0])][1])))


def _cards(folder: Path) -> Reader:
    """Cards of others, read, shown in a table beside a good one and ranked."""
    interval = {"low": 1.0, "high": 3.0, "level": 0.95}
    good = {
        **{"metric": "FVD", "value": 2.0, "interval": interval, "mean_term": 1.0, "covariance_term": 1.0},
        **{"kernel_distance": 0.1, "limit": {"value": 1.5, "bias": 0.5, "interval": interval, "settled": True}},
        "protocol": {"num_clips": 256, "real": "2:" + "0" * 32, "frames": 16, "size": [32, 32]},
        "subject": {"step": 10, "weights": "ema", "sampler": {"class": "DDIM", "num_steps": 50}},
        "references": {"training clips": "x"},
        "yardsticks": {"training clips": {"value": 1.0, "interval": interval}},
        "companions": {"shuffled": {"value": 5.0, "interval": interval}},
        **{"measures": {"novelty": 0.9}, "nearest": {"clip": [1, 2], "distance": [0.1, 0.2]}, "notes": ["few"]},
    }
    path, console = folder / "card.json", Terminal(file=io.StringIO())

    def make(case: int) -> Path:
        path.write_bytes(spoiled_json(good, np.random.default_rng((9, case))))
        return path

    def read(path: Path) -> None:
        card = read_card(path)
        console.print(table([good, card], ["good", str(path)]))
        if not differing_scale(good, card):
            sorted([2.0, card["value"]])

    return Reader(make=make, read=read)


def _tar(folder: Path, kind: str) -> bytes:
    path = folder / f"good.{kind}"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w", format=tarfile.PAX_FORMAT) as archive:
        for number, suffix in enumerate((".mp4", ".mov", ".txt", ".json")):
            member = tarfile.TarInfo(f"cat/clip {number}{suffix}")
            content = bytes(range(256)) * (3 + number)
            member.size, member.pax_headers = len(content), {"comment": "a" * 30, "mtime": "1.5"}
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def _tars(folder: Path) -> Reader:
    """Tars, listed and copied member by member as ingest does; sizes in headers, with their sums right, too."""
    plain, packed = _tar(folder, "tar"), _tar(folder, "tar.gz")
    (spool := folder / "spool").mkdir()

    def make(case: int) -> Path:
        rng = np.random.default_rng((10, case))
        path = folder / ("case.tar.gz" if case % 3 == 2 else "case.tar")
        match case % 3:
            case 0:
                path.write_bytes(spoiled(plain, rng))
            case 1:
                path.write_bytes(_with_other_numbers(plain, rng))
            case _:
                path.write_bytes(spoiled(packed, rng))
        return path

    def read(path: Path) -> None:
        shutil.rmtree(spool)
        spool.mkdir()
        for _, copied in files(list_files([path]), spool):
            copied.unlink(missing_ok=True)

    return Reader(make=make, read=read)


def _with_other_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    """A tar with other sizes and kinds in a header, whose sum is right, so that it is believed."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for place in rng.choice(heads, size=rng.integers(1, 3)):
        block = bytearray(blocks[place])
        size = int(rng.choice([0, 1, 511, 10**4, 2**31, 2**33 - 1, 2**38]))
        block[124:136] = b"%011o\0" % min(size, 8**11 - 1) if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
        block[156:157] = rng.choice(list(b"01235LKxgS")).item().to_bytes(1, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        blocks[place] = bytes(block)
    return b"".join(blocks)


def _arrays(folder: Path) -> Reader:
    """Frames in .npy and .npz, as `evaluate fvd` takes them, and weights in .npz."""
    frames = np.arange(2 * 3 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 3, 8, 8, 3)
    good = {}
    for kind in ("npy", "stored.npz", "packed.npz"):
        path = folder / f"good.{kind}"
        save = {"npy": np.save, "stored.npz": np.savez, "packed.npz": np.savez_compressed}[kind]
        save(path, frames)
        good[kind] = path.read_bytes()

    def make(case: int) -> Path:
        rng = np.random.default_rng((11, case))
        kind = list(good)[case % len(good)]
        path = folder / f"case.{kind}"
        data = _claiming_shape(good[kind], rng) if rng.random() < 0.5 else spoiled(good[kind], rng, *good.values())
        path.write_bytes(data)
        return path

    def read(path: Path) -> None:
        refused = None
        for examine in (open_videos, read_tensors) if path.suffix == ".npz" else (open_videos,):
            try:
                examine(path)
            except ValueError as error:
                refused = error
        if refused is not None:
            raise refused

    return Reader(make=make, read=read)


def _claiming_shape(data: bytes, rng: np.random.Generator) -> bytes:
    """An array whose header claims another shape, type or order, in as many bytes."""
    begin = data.find(b"{'descr'")
    if begin < 0:
        return spoiled(data, rng)
    end = data.index(b"\n", begin)
    shapes = ("(10**12,)", "(1000000000000,)", "(-1,3,8,8,3)", "(2,3,8,8,4611686018427387904)", "(2,3,8,8,3,0)", "()")
    kinds = ("|u1", "<f8", "|O", "<U9999999", "|V4", ">c16", "<m8[s]", "|S0")
    shape, kind = shapes[rng.integers(len(shapes))], kinds[rng.integers(len(kinds))]
    order = bool(rng.integers(2))
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return data[:begin] + header.ljust(end - begin)[: end - begin] + data[end:]


def _model_indices(folder: Path) -> Reader:
    """Indices of pipelines of a denoiser and its VAE, whose parts are whole."""
    pipeline = folder / "pipeline"
    for part, number in (("transformer", 0), ("vae", 4)):
        (where := pipeline / part).mkdir(parents=True)
        config = _CONFIGS[number]
        network = next(filter(None, (family.of_diffusers(config) for family in (*DENOISERS, *VAES))))
        _write_weights(where / WEIGHTS, network.table(), Dialect.DIFFUSERS)
        (where / CONFIG).write_text(json.dumps(config))
    good = {
        **{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]},
        **{"vae": ["diffusers", "AutoencoderKL"], "id2label": {"0": "cat", "1": "dog"}, "expand_timesteps": False},
    }

    def make(case: int) -> Path:
        path = pipeline / PIPELINE
        path.write_bytes(spoiled_json(good, np.random.default_rng((12, case))))
        return path

    def read(path: Path) -> None:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        import_run(path.parent, run, out=run, experiment=None)

    return Reader(make=make, read=read)


def _discard(value: Any) -> None:
    del value


STRANGER_FAMILIES = {
    "config": Family(prepare=_configs, num_bytes=2 << 30),
    "text config": Family(prepare=_text_configs, num_bytes=2 << 30),
    "model index": Family(prepare=_model_indices, num_bytes=2 << 30),
    "card": Family(prepare=_cards, num_bytes=1 << 30),
    "tokenizer": Family(prepare=_tokenizers, num_bytes=1 << 30),
    "scheduler": Family(prepare=_schedulers, num_bytes=1 << 30),
    "tar": Family(prepare=_tars, num_bytes=1 << 30),
    "array": Family(prepare=_arrays, num_bytes=1 << 30),
}
