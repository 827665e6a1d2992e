"""Weights and config of Hugging Face transformers' `T5EncoderModel` and `UMT5EncoderModel`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dit_video.encoders.t5 import T5Config
from dit_video.weights.config_json import count_of, epsilon_of, refused
from dit_video.weights.names import LAYER, Dialect, NamesMismatch, Row, Shape, Source, Table, linear, vector

_CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
# One table of tokens, which files have under one of these names or both.
_TABLE, _TABLE_AGAIN = "shared.weight", "encoder.embed_tokens.weight"


def of_transformers(config: Mapping[str, Any]) -> T5Config | None:
    """Config of a T5 encoder from a config.json of transformers; None where it is of another family.

    Raises:
        ValueError: it is no encoder of T5 v1.1 or UMT5; names the field.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        return None
    architectures = config.get("architectures")
    if architectures != [_CLASSES[kind]]:
        raise refused("architectures", architectures, f"only {_CLASSES[kind]} is read")
    activation = config.get("feed_forward_proj")
    if activation != "gated-gelu":
        raise refused("feed_forward_proj", activation, "T5 v1.1 and UMT5 have 'gated-gelu'")
    return T5Config(
        vocab_size=count_of(config, "vocab_size"),
        hidden_size=count_of(config, "d_model"),
        depth=count_of(config, "num_layers"),
        num_heads=count_of(config, "num_heads"),
        head_dim=count_of(config, "d_kv"),
        mlp_size=count_of(config, "d_ff"),
        num_buckets=count_of(config, "relative_attention_num_buckets"),
        max_distance=count_of(config, "relative_attention_max_distance", 128),
        bias_in_every_block=kind == "umt5",
        norm_epsilon=epsilon_of(config, "layer_norm_epsilon", 1e-6),
    )


def tensors(source: Source) -> Source:
    """Tensors of a file, with the token embedding once, under its own name.

    Raises:
        NamesMismatch: it is there twice with different numbers.
    """
    if _TABLE_AGAIN not in source:
        return source
    weights = {name: stored for name, stored in source.items() if name != _TABLE_AGAIN}
    again = source[_TABLE_AGAIN]
    if _TABLE in weights and not np.array_equal(weights[_TABLE].read(), again.read()):
        raise NamesMismatch(f"{_TABLE_AGAIN} differs from {_TABLE}: this network has one table")
    return {_TABLE: again} | weights


def table(config: T5Config) -> Table:
    """Name table of a T5 encoder in transformers."""
    D, M, heads = config.hidden_size, config.mlp_size, (config.num_heads, config.head_dim)
    attention, mlp = f"encoder.block.{LAYER}.layer.0", f"encoder.block.{LAYER}.layer.1"

    def norm(ours: str, theirs: str, *, stacked: bool) -> Row:
        return vector(ours, (D,), _theirs(f"{theirs}.weight"), num_layers=config.depth, stacked=stacked)

    def product(ours: str, inputs: Shape, outputs: Shape, *theirs: str) -> tuple[Row, ...]:
        return linear(
            f"blocks.{ours}",
            inputs,
            outputs,
            _theirs(*theirs),
            num_layers=config.depth,
            stacked=True,
            use_bias=False,
        )

    sizes = (config.num_buckets, config.num_heads)

    def bias(block: str) -> str:
        return f"encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight"

    return Table(
        rows=(
            _table("table", (config.vocab_size, D), _TABLE),
            _table("blocks.position_bias.table", sizes, bias(LAYER), num_layers=config.depth)
            if config.bias_in_every_block
            else _table("position_bias.table", sizes, bias("0")),
            norm("blocks.attention_norm.scale", f"{attention}.layer_norm", stacked=True),
            *product(
                *("attention.qkv", (D,), (3, *heads)),
                *(f"{attention}.SelfAttention.{part}" for part in ("q", "k", "v")),
            ),
            *product("attention.out", heads, (D,), f"{attention}.SelfAttention.o"),
            norm("blocks.mlp_norm.scale", f"{mlp}.layer_norm", stacked=True),
            *product("mlp.gate", (D,), (M,), f"{mlp}.DenseReluDense.wi_0"),
            *product("mlp.up", (D,), (M,), f"{mlp}.DenseReluDense.wi_1"),
            *product("mlp.down", (M,), (D,), f"{mlp}.DenseReluDense.wo"),
            norm("norm.scale", "encoder.final_layer_norm", stacked=False),
        )
    )


def _table(ours: str, shape: tuple[int, int], theirs: str, *, num_layers: int | None = None) -> Row:
    """Row of a parameter with the same layout here and there."""
    return Row(
        ours=ours,
        our_shape=shape,
        theirs=_theirs(theirs),
        shape=shape,
        order=(0, 1),
        num_layers=num_layers or 1,
        stacked=num_layers is not None,
    )


def _theirs(*names: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.TRANSFORMERS: names}
