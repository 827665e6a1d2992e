"""Parameter names of Wan in diffusers and in the official code (Wan-Video/Wan2.1)."""

import math

from dit_video.dit.wan import WanConfig
from dit_video.nn.embed import TimeEmbedding
from dit_video.published.vae_family import translate
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Table, linear, vector

_BLOCK = f"blocks.{LAYER}"
# Names of diffusers with those of the official code, the longer first.
_OFFICIAL_WORDS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    f"{_BLOCK}.scale_shift_table": f"{_BLOCK}.modulation",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def table_of(config: WanConfig, *, channels: int, channels_in: int, text_size: int, image_size: int | None) -> Table:
    """Name table of a Wan network in both dialects.

    Args:
        channels, channels_in: of latents that come out, and of cells that go in.
        text_size: width of the tokens of text.
        image_size: width of the tokens of an image; None where there are none.
    """
    D = config.hidden_size
    patch, num_cells = config.patch_size, math.prod(config.patch_size)
    rows = [
        # A convolution there: cells of a patch are ordered (frame, row, column, channel) here.
        Row(
            ours="x_embedder.kernel",
            our_shape=(num_cells * channels_in, D),
            theirs=_theirs("patch_embedding.weight"),
            shape=(D, channels_in, *patch),
            order=(2, 3, 4, 1, 0),
        ),
        vector("x_embedder.bias", (D,), _theirs("patch_embedding.bias")),
        *_alone("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,), "time_embedder.linear_1"),
        *_alone("t_embedder.down", (D,), (D,), "time_embedder.linear_2"),
        *_alone("shared_modulation.projection", (D,), (6, D), "time_proj"),
        *_alone("text_embedder.up", (text_size,), (D,), "text_embedder.linear_1"),
        *_alone("text_embedder.down", (D,), (D,), "text_embedder.linear_2"),
        *_block_rows(config, with_image=image_size is not None),
        _modulation("final_modulation.table", 2, D, "scale_shift_table"),
        *linear("final_layer", (D,), (num_cells * channels,), _theirs("proj_out")),
    ]
    if image_size is not None:
        E, embedder = image_size, "image_embedder"
        rows += [
            *_alone_norm("image_embedder.norm_in", E, f"{embedder}.norm1"),
            *_alone("image_embedder.up", (E,), (E,), f"{embedder}.ff.net.0.proj"),
            *_alone("image_embedder.down", (E,), (D,), f"{embedder}.ff.net.2"),
            *_alone_norm("image_embedder.norm_out", D, f"{embedder}.norm2"),
        ]
    # A norm that older files of image to video have and that nothing was ever normalised with.
    unused = {f"{_BLOCK}.attn2.norm_added_q.weight".replace(LAYER, str(n)) for n in range(config.depth)}
    return Table(rows=tuple(rows), unused={Dialect.DIFFUSERS: frozenset(unused) if image_size else frozenset()})


def _block_rows(config: WanConfig, *, with_image: bool) -> list[Row]:
    D, K = config.hidden_size, config.num_heads
    d, layers = D // K, {"num_layers": config.depth, "stacked": True}

    def in_blocks(ours: str, inputs: Shape, outputs: Shape, *theirs: str) -> tuple[Row, ...]:
        return linear(f"blocks.{ours}", inputs, outputs, _in_block(*theirs), **layers)

    def turned(ours: str, our_shape: Shape, shape: Shape, pieces: Shape, order: Shape, *theirs: str) -> Row:
        names = {"ours": f"blocks.attention.{ours}", "theirs": _in_block(*(f"attn1.{name}" for name in theirs))}
        return Row(our_shape=our_shape, shape=shape, pieces=pieces, order=order, **names, **layers)

    def norm(ours: str, theirs: str) -> Row:
        return vector(f"blocks.cross_attention.{ours}.scale", (K, d), _in_block(f"attn2.{theirs}.weight"), **layers)

    # A plane of rotation is a pair of neighbours (d/2, 2) there, and has one part in each half of a head (2, d/2)
    # here. Values, which are not rotated, are moved alike, and `out` takes them as they have been moved.
    planes, qkv = (K, d // 2, 2), ("to_q", "to_k", "to_v")
    rows = [
        _modulation("blocks.modulation.table", 6, D, f"{_BLOCK}.scale_shift_table", **layers),
        turned(
            *("qkv.kernel", (D, 3, K, d), (3 * D, D), (3, *planes, D), (4, 0, 1, 3, 2)),
            *(f"{name}.weight" for name in qkv),
        ),
        turned(*("qkv.bias", (3, K, d), (3 * D,), (3, *planes), (0, 1, 3, 2)), *(f"{name}.bias" for name in qkv)),
        turned("out.kernel", (K, d, D), (D, D), (D, *planes), (1, 3, 2, 0), "to_out.0.weight"),
        vector("blocks.attention.out.bias", (D,), _in_block("attn1.to_out.0.bias"), **layers),
        turned("query_norm.scale", (K, d), (D,), planes, (0, 2, 1), "norm_q.weight"),
        turned("key_norm.scale", (K, d), (D,), planes, (0, 2, 1), "norm_k.weight"),
        vector("blocks.cross_norm.scale", (D,), _in_block("norm2.weight"), **layers),
        vector("blocks.cross_norm.bias", (D,), _in_block("norm2.bias"), **layers),
        *in_blocks("cross_attention.query", (D,), (K, d), "attn2.to_q"),
        *in_blocks("cross_attention.key_value", (D,), (2, K, d), "attn2.to_k", "attn2.to_v"),
        *in_blocks("cross_attention.out", (K, d), (D,), "attn2.to_out.0"),
        norm("query_norm", "norm_q"),
        norm("key_norm", "norm_k"),
        *in_blocks("mlp.up", (D,), (config.mlp_size,), "ffn.net.0.proj"),
        *in_blocks("mlp.down", (config.mlp_size,), (D,), "ffn.net.2"),
    ]
    if with_image:
        added = ("attn2.add_k_proj", "attn2.add_v_proj")
        rows += [
            *in_blocks("cross_attention.image_key_value", (D,), (2, K, d), *added),
            norm("image_key_norm", "norm_added_k"),
        ]
    return rows


def _theirs(*names: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.OFFICIAL: tuple(translate(name, _OFFICIAL_WORDS) for name in names), Dialect.DIFFUSERS: names}


def _in_block(*names: str) -> dict[Dialect, tuple[str, ...]]:
    return _theirs(*(f"{_BLOCK}.{name}" for name in names))


def _alone(ours: str, inputs: Shape, outputs: Shape, theirs: str) -> tuple[Row, ...]:
    return linear(ours, inputs, outputs, _theirs(f"condition_embedder.{theirs}"))


def _alone_norm(ours: str, features: int, theirs: str) -> tuple[Row, ...]:
    ends = {"scale": "weight", "bias": "bias"}
    return tuple(
        vector(f"{ours}.{end}", (features,), _theirs(f"condition_embedder.{theirs}.{there}"))
        for end, there in ends.items()
    )


def _modulation(ours: str, num: int, width: int, theirs: str, *, num_layers: int = 1, stacked: bool = False) -> Row:
    """Row of modulation vectors; theirs have a batch axis."""
    return Row(
        ours=ours,
        our_shape=(num, width),
        theirs=_theirs(theirs),
        shape=(1, num, width),
        order=(0, 1, 2),
        num_layers=num_layers,
        stacked=stacked,
    )
