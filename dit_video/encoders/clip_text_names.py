"""Weights and config of Hugging Face transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`."""

from collections.abc import Mapping
from typing import Any

from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_text import CLIPTextConfig
from dit_video.weights.config_json import count_of, epsilon_of, refused
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Source, Table, linear, vector

_MODEL, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
# What the names of all but the projection begin with, unless the file is a CLIPTextModel of today.
_PREFIX = "text_model."
# The numbers 0, 1, 2 ..., which older files hold.
_COUNTED = f"{_PREFIX}embeddings.position_ids"
# The value of configs that were written before the end token had a field: there it is the last token of all.
_UNTOLD_END = 2


def of_transformers(config: Mapping[str, Any]) -> CLIPTextConfig | None:
    """Config of a CLIP text encoder from a config.json of transformers; None where it is of another family.

    Raises:
        ValueError: it is no text model of CLIP; names the field.
    """
    if config.get("model_type") != "clip_text_model":
        return None
    architectures = config.get("architectures")
    if architectures not in ([_MODEL], [_PROJECTED]):
        raise refused("architectures", architectures, f"only {_MODEL} and {_PROJECTED} are read")
    activation = config.get("hidden_act", Activation.QUICK_GELU.value)
    if activation not in [known.value for known in Activation]:
        raise refused("hidden_act", activation, f"{', '.join(a.value for a in Activation)} are known")
    vocab_size = count_of(config, "vocab_size")
    end = count_of(config, "eos_token_id")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=count_of(config, "hidden_size"),
        depth=count_of(config, "num_hidden_layers"),
        num_heads=count_of(config, "num_attention_heads"),
        mlp_size=count_of(config, "intermediate_size"),
        activation=Activation(activation),
        end_token=vocab_size - 1 if end == _UNTOLD_END else end,
        num_positions=count_of(config, "max_position_embeddings"),
        projection_size=count_of(config, "projection_dim") if architectures == [_PROJECTED] else None,
        norm_epsilon=epsilon_of(config, "layer_norm_eps", 1e-5),
    )


def tensors(source: Source) -> Source:
    """Tensors of a file by the names that most files have."""
    whole = {
        name if name.startswith((_PREFIX, "text_projection.")) else f"{_PREFIX}{name}": stored
        for name, stored in source.items()
    }
    return {name: stored for name, stored in whole.items() if name != _COUNTED}


def table(config: CLIPTextConfig) -> Table:
    """Name table of a CLIP text encoder in transformers."""
    D, M, heads = config.hidden_size, config.mlp_size, (config.num_heads, config.hidden_size // config.num_heads)
    layer = f"{_PREFIX}encoder.layers.{LAYER}"

    def embedding(ours: str, num: int, theirs: str) -> Row:
        names = _theirs(f"{_PREFIX}embeddings.{theirs}.weight")
        return Row(ours=ours, our_shape=(num, D), theirs=names, shape=(num, D), order=(0, 1))

    def norm(ours: str, theirs: str, *, stacked: bool) -> tuple[Row, Row]:
        def end(our_end: str, their_end: str) -> Row:
            names = _theirs(f"{theirs}.{their_end}")
            return vector(f"{ours}.{our_end}", (D,), names, num_layers=config.depth, stacked=stacked)

        return end("scale", "weight"), end("bias", "bias")

    def product(ours: str, inputs: Shape, outputs: Shape, *theirs: str) -> tuple[Row, ...]:
        names = _theirs(*(f"{layer}.{name}" for name in theirs))
        return linear(f"blocks.{ours}", inputs, outputs, names, num_layers=config.depth, stacked=True)

    rows = (
        embedding("table", config.vocab_size, "token_embedding"),
        embedding("positions", config.num_positions, "position_embedding"),
        *norm("blocks.attention_norm", f"{layer}.layer_norm1", stacked=True),
        *product("attention.qkv", (D,), (3, *heads), *(f"self_attn.{part}_proj" for part in ("q", "k", "v"))),
        *product("attention.out", heads, (D,), "self_attn.out_proj"),
        *norm("blocks.mlp_norm", f"{layer}.layer_norm2", stacked=True),
        *product("up", (D,), (M,), "mlp.fc1"),
        *product("down", (M,), (D,), "mlp.fc2"),
        *norm("norm", f"{_PREFIX}final_layer_norm", stacked=False),
    )
    if config.projection_size is None:
        return Table(rows=rows)
    projection = linear("projection", (D,), (config.projection_size,), _theirs("text_projection"), use_bias=False)
    return Table(rows=(*rows, *projection))


def _theirs(*names: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.TRANSFORMERS: names}
