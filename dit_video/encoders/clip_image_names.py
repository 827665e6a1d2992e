"""Weights and config of Hugging Face transformers' `CLIPVisionModel`: parameter names, config.json, preprocessor."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.config.json_file import read_object
from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_image import MEAN, STD, CLIPVisionConfig
from dit_video.weights.config_json import check_fixed, count_of, epsilon_of, refused
from dit_video.weights.folder import PIPELINE
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Source, Table, linear, vector

_MODEL = "CLIPVisionModel"
# What names begin with, unless the file is of today.
_PREFIX = "vision_model."
# The numbers 0, 1, 2 ..., which older files hold.
_COUNTED = f"{_PREFIX}embeddings.position_ids"
# What says how pictures are prepared: beside the weights, or in a folder of its own in a pipeline.
_PROCESSOR, _PROCESSOR_FOLDER = "preprocessor_config.json", "image_processor"
# Its classes, of today and before, which all do the same.
_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
# Numbers that differ by less are roundings of one.
_ROUNDING = 1e-6
_PRODUCTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


def of_transformers(config: Mapping[str, Any]) -> CLIPVisionConfig | None:
    """Config of a CLIP vision transformer from a config.json of transformers; None where it is of another family.

    Raises:
        ValueError: it is no vision transformer of CLIP that stands alone; names the field.
    """
    if config.get("model_type") != "clip_vision_model":
        return None
    architectures = config.get("architectures")
    if architectures != [_MODEL]:
        raise refused("architectures", architectures, f"only {_MODEL} is read")
    check_fixed(config, {"num_channels": 3})
    activation = config.get("hidden_act", Activation.QUICK_GELU.value)
    if activation not in [known.value for known in Activation]:
        raise refused("hidden_act", activation, f"{', '.join(a.value for a in Activation)} are known")
    return CLIPVisionConfig(
        hidden_size=count_of(config, "hidden_size"),
        depth=count_of(config, "num_hidden_layers"),
        num_heads=count_of(config, "num_attention_heads"),
        mlp_size=count_of(config, "intermediate_size"),
        activation=Activation(activation),
        image_size=count_of(config, "image_size"),
        patch_size=count_of(config, "patch_size"),
        norm_epsilon=epsilon_of(config, "layer_norm_eps", 1e-5),
    )


def check_processor(folder: Path, encoder: CLIPVisionConfig) -> None:
    """Checks that preprocessor_config.json of a published encoder agrees with `clip_image.prepared`.

    Without such a file nothing is checked.

    Args:
        folder: of the encoder, which may be one of a pipeline's.

    Raises:
        ValueError: they are prepared otherwise; names the file, the field and its value.
    """
    places = [folder / _PROCESSOR]
    if (folder.parent / PIPELINE).is_file():
        places.append(folder.parent / _PROCESSOR_FOLDER / _PROCESSOR)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return
    config, side = read_object(path), encoder.image_size
    # A field that is not there has the value that `prepared` goes by, but for sizes: those are CLIP's own.
    done: dict[str, Any] = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
    done |= {"do_pad": False, "resample": 3, "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD}
    for name, value in done.items():
        if config.get(name) is not None and not _same(config[name], value):
            raise ValueError(f"{path}: {name}={config[name]!r}: pictures are prepared here with {value}")
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    for name, value in sizes.items():
        size = config.get(name, CLIPVisionConfig.image_size)
        if size not in (value, side):
            raise ValueError(f"{path}: {name}={size!r}: the encoder is shown {side} x {side} pixels: {value}")
    kind = config.get("image_processor_type", config.get("feature_extractor_type", _PROCESSORS[0]))
    if kind not in _PROCESSORS:
        raise ValueError(f"{path}: image_processor_type={kind!r}: pictures are prepared here as by {_PROCESSORS[0]}")


def _same(actual: Any, expected: Any) -> bool:
    """Whether numbers, or lists of them, are equal up to rounding."""
    if isinstance(expected, Sequence):
        return isinstance(actual, list) and len(actual) == len(expected) and all(map(_same, actual, expected))
    if isinstance(expected, bool) or isinstance(actual, bool):
        return actual is expected
    return isinstance(actual, int | float) and math.isclose(actual, expected, rel_tol=_ROUNDING)


def tensors(source: Source) -> Source:
    """Tensors of a file by the names that most files have."""
    whole = {name if name.startswith(_PREFIX) else f"{_PREFIX}{name}": stored for name, stored in source.items()}
    return {name: stored for name, stored in whole.items() if name != _COUNTED}


def table(config: CLIPVisionConfig) -> Table:
    """Name table of a CLIP vision transformer in transformers."""
    D, M, heads = config.hidden_size, config.mlp_size, (config.num_heads, config.hidden_size // config.num_heads)
    depth, side, layer = config.depth - 1, config.patch_size, f"{_PREFIX}encoder.layers.{LAYER}"

    def norm(ours: str, theirs: str, *, stacked: bool) -> tuple[Row, Row]:
        def end(our_end: str, their_end: str) -> Row:
            names = _theirs(f"{theirs}.{their_end}")
            return vector(f"{ours}.{our_end}", (D,), names, num_layers=depth, stacked=stacked)

        return end("scale", "weight"), end("bias", "bias")

    def product(ours: str, inputs: Shape, outputs: Shape, *theirs: str) -> tuple[Row, ...]:
        names = _theirs(*(f"{layer}.{name}" for name in theirs))
        return linear(f"blocks.{ours}", inputs, outputs, names, num_layers=depth, stacked=True)

    positions, first = (_theirs(f"{_PREFIX}embeddings.{n}") for n in ("position_embedding.weight", "class_embedding"))
    rows = (
        # A convolution there: pixels of a patch are ordered (row, column, channel) here.
        Row(
            ours="patch_embedder.kernel",
            our_shape=(3 * side**2, D),
            theirs=_theirs(f"{_PREFIX}embeddings.patch_embedding.weight"),
            shape=(D, 3, side, side),
            order=(2, 3, 1, 0),
        ),
        Row(ours="class_token", our_shape=(1, D), theirs=first, shape=(D,), order=(0,)),
        Row(
            ours="positions",
            our_shape=(config.num_tokens, D),
            theirs=positions,
            shape=(config.num_tokens, D),
            order=(0, 1),
        ),
        *norm("norm", f"{_PREFIX}pre_layrnorm", stacked=False),
        *norm("blocks.attention_norm", f"{layer}.layer_norm1", stacked=True),
        *product("attention.qkv", (D,), (3, *heads), *_PRODUCTS[:3]),
        *product("attention.out", heads, (D,), _PRODUCTS[3]),
        *norm("blocks.mlp_norm", f"{layer}.layer_norm2", stacked=True),
        *product("up", (D,), (M,), _PRODUCTS[4]),
        *product("down", (M,), (D,), _PRODUCTS[5]),
    )
    # The last block and the norm after it, which make none of the states that are taken.
    last = layer.replace(LAYER, str(depth))
    ended = (f"{_PREFIX}post_layernorm", *(f"{last}.{name}" for name in (*_PRODUCTS, "layer_norm1", "layer_norm2")))
    unused = frozenset(f"{name}.{end}" for name in ended for end in ("weight", "bias"))
    return Table(rows=rows, unused={Dialect.TRANSFORMERS: unused})


def _theirs(*names: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.TRANSFORMERS: names}
