"""Checks attention kernels and rematerialisation on the device that is here, and times steps on it.

    python -m tools.on_device                # at most 8 minutes on one GPU or TPU; writes docs/on_device.json
    python -m tools.on_device --tiny         # seconds, anywhere: what a machine without an accelerator does

Needs jax, flax, optax and numpy. Every kernel of attention is compared with softmax by definition in value and
gradients, every policy of rematerialisation with none in the gradients of a small DiT. Then steps of DiT-B, L and XL
and of Wan 1.3B are timed, as long as there is time: forward, backward and AdamW in bfloat16 on random latents. MFU
counts model FLOPs: the backward pass is twice the forward pass, whatever is computed again.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dit_video.arrays import Text
from dit_video.distributed.sharding import MeshShape, make_mesh, platform_of
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.dit import DIT_B, DIT_L, DIT_XL, DiTConfig
from dit_video.dit.network import NetworkConfig, Remat
from dit_video.dit.wan import WAN_1_3B, WanConfig
from dit_video.nn.module import define
from dit_video.nn.softmax_attention import choose_kernel, cross_attention, self_attention
from dit_video.training.flops import count_flops, peak_flops

FIGURES = Path(__file__).parent.parent / "docs/on_device.json"
SECONDS = 8 * 60
CHANNELS = 16
# The first text of blank captions is seen by one token.
TEXT = EmbeddedText(hidden_size=64, pooled_size=1, num_tokens=8)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to be timed.

    Attributes:
        latents: (t, h, w) in cells; tokens are a quarter of these.
    """

    name: str
    config: NetworkConfig
    latents: tuple[int, int, int]
    batch_size: int

    @property
    def num_tokens(self) -> int:
        t, h, w = self.latents
        return t * h * w // 4


def cases(tiny: bool) -> list[Case]:
    """Those of a device from short to long; tiny ones take seconds on a CPU."""
    if tiny:
        return [Case("tiny Wan", WanConfig(hidden_size=32, depth=2, num_heads=2, mlp_width=64), (2, 4, 4), 1)]
    short, long = (4, 32, 32), (16, 32, 32)
    sizes = {"DiT-B": DIT_B, "DiT-L": DIT_L, "DiT-XL": DIT_XL}
    wan = dataclasses.replace(WAN_1_3B, depth=4, remat=Remat.FULL, text_length=None)
    return [
        *(Case(name, dataclasses.replace(size, remat=Remat.DOTS), short, 16) for name, size in sizes.items()),
        *(Case(name, dataclasses.replace(size, remat=Remat.DOTS), long, 4) for name, size in sizes.items()),
        Case("4 blocks of Wan 1.3B", wan, (21, 30, 52), 1),
        Case("4 blocks of Wan 1.3B", wan, (21, 60, 104), 1),
    ]


def by_definition(q: jax.Array, k: jax.Array, v: jax.Array, num_keys: jax.Array | None = None) -> jax.Array:
    """Softmax attention in float32 at the highest precision."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / np.sqrt(q.shape[-1])
    if num_keys is not None:
        logits = jnp.where((jnp.arange(k.shape[1]) < num_keys[:, None])[:, None, None], logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v, precision="highest")


def check_attention(tiny: bool) -> Iterator[dict[str, Any]]:
    """Relative errors (root mean square) of value and gradients, by kernel, type and shape."""
    shapes = [(16, 5)] if tiny else [(300, 300), (300, 77), (1280, 1280), (4101, 4101)]
    kinds = [(jnp.float32, 64), (jnp.bfloat16, 64), (jnp.bfloat16, 72), (jnp.bfloat16, 128)]
    for num_queries, num_tokens in shapes:
        for dtype, head_dim in kinds[:2] if tiny else kinds:
            rng = np.random.default_rng(0)
            q, k, v, d_out = (
                jnp.asarray(rng.standard_normal((1, n, 2, head_dim), np.float32), dtype)
                for n in (num_queries, num_tokens, num_tokens, num_queries)
            )
            limits = None if num_queries == num_tokens else jnp.asarray([num_tokens // 2 + 1], jnp.int32)

            def attend(q, k, v, limits=limits):
                return self_attention(q, k, v) if limits is None else cross_attention(q, k, v, limits)

            actual = _value_and_gradients(attend, q, k, v, d_out)
            expected = _value_and_gradients(
                lambda q, k, v, limits=limits: by_definition(q, k, v, limits).astype(q.dtype), q, k, v, d_out
            )
            errors = [_error(one, other) for one, other in zip(actual, expected, strict=True)]
            kernel = choose_kernel(jax.default_backend(), dtype, head_dim)
            yield {
                "kernel": kernel.name,
                "dtype": jnp.dtype(dtype).name,
                "shape": [num_queries, num_tokens, head_dim],
                "errors": dict(zip(("out", "d_q", "d_k", "d_v"), errors, strict=True)),
                # Products of float32 are rounded to bfloat16 by TPUs, and to TF32 by GPUs, unless asked otherwise.
                "passes": max(errors) < (2e-2 if dtype == jnp.bfloat16 or jax.default_backend() != "cpu" else 1e-5),
            }


def _value_and_gradients(attend: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    @jax.jit
    def run(q, k, v, d_out):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(d_out)

    return run(*arrays)


def _error(one: jax.Array, other: jax.Array) -> float:
    a, b = np.asarray(one, np.float32), np.asarray(other, np.float32)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check_policies() -> Iterator[dict[str, Any]]:
    """Relative error of the whole gradient of a small DiT against that with nothing recomputed."""
    case = Case("small DiT", DiTConfig(hidden_size=64, depth=2, num_heads=2), (2, 8, 8), 2)
    gradients = {}
    for remat in Remat:
        loss, params, arguments = _loss(dataclasses.replace(case, config=dataclasses.replace(case.config, remat=remat)))
        gradients[remat] = jnp.concatenate([x.ravel() for x in jax.jit(jax.grad(loss))(params, *arguments).values()])
        error = _error(gradients[remat], gradients[Remat.NOTHING_RECOMPUTED])
        yield {"remat": remat.value, "error": error, "passes": error < 2e-2}


def _loss(case: Case) -> tuple[Callable[..., jax.Array], dict[str, jax.Array], tuple[Any, ...]]:
    """Loss of a network whose parameters are all random, these parameters, and random arguments."""
    condition = TEXT if isinstance(case.config, WanConfig) else None
    build = lambda key: case.config.build(CHANNELS, condition, dtype=jnp.bfloat16, rngs=nnx.Rngs(key))  # noqa: E731
    definition, rng = define(build), np.random.default_rng(0)
    shapes = definition.shapes.items()
    params = {n: jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32)) for n, s in shapes}
    B, shape = case.batch_size, (*case.latents, CHANNELS)
    x_t, eps = (jnp.asarray(rng.standard_normal((B, *shape), np.float32)) for _ in range(2))
    cond = None
    if condition is not None:
        blank = Text(*map(jnp.asarray, condition.blank_null()))
        cond = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), blank)

    def loss(params, x_t, t, eps, cond):
        return jnp.mean(jnp.square(definition.bind(params)(x_t, t, cond) - eps))

    return loss, params, (x_t, jnp.full((B, 1), 0.5), eps, cond)


def time_step(case: Case, num_steps: int) -> dict[str, Any]:
    """Seconds of a step, MFU, and peak memory as the compiler and the device have it."""
    loss, params, arguments = _loss(case)
    rule = optax.adamw(1e-4)
    flops = 3 * count_flops(loss, params, *arguments)

    def update(params, state, *arguments):
        value, gradient = jax.value_and_grad(loss)(params, *arguments)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = rule.init(params)
    started = time.perf_counter()
    step = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, *arguments).compile()
    compiled = time.perf_counter() - started
    memory = step.memory_analysis()
    seconds, value = [], jnp.zeros(())
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        params, state, value = jax.block_until_ready(step(params, state, *arguments))
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    peak, stats = peak_flops(jax.devices()[0].device_kind), jax.devices()[0].memory_stats() or {}
    return {
        "name": case.name,
        "tokens": case.num_tokens,
        "batch_size": case.batch_size,
        "remat": case.config.remat.value,
        "seconds": median,
        "seconds_range": [min(seconds[1:]), max(seconds[1:])],
        "steps": num_steps,
        "mfu": None if peak is None else flops / median / peak,
        "compile_seconds": compiled,
        "compiler_temporaries": None if memory is None else memory.temp_size_in_bytes,
        "device_peak": stats.get("peak_bytes_in_use"),
        "loss": float(value),
    }


def measure(tiny: bool) -> dict[str, Any]:
    """All checks, and as many timed steps as there is time for."""
    started = time.monotonic()
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        found: dict[str, Any] = {
            "device": jax.devices()[0].device_kind,
            "platform": platform_of(mesh),
            "jax": jax.__version__,
            "tiny": tiny,
            "attention": list(check_attention(tiny)),
            "policies": list(check_policies()),
            "steps": [],
        }
        for case in cases(tiny):
            # A case takes a minute or two, most of it to compile.
            if time.monotonic() - started < SECONDS - 120:
                found["steps"].append(time_step(case, 2 if tiny else 10))
    return found | {"seconds": time.monotonic() - started}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes; so without an accelerator")
    parser.add_argument("--out", type=Path, default=FIGURES, help=f"JSON to write ({FIGURES.name})")
    arguments = parser.parse_args(words)
    tiny = arguments.tiny or jax.default_backend() == "cpu"
    if tiny:
        print("tiny sizes: what is checked and timed here says nothing of an accelerator")
    found = measure(tiny)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    failed = [one for one in [*found["attention"], *found["policies"]] if not one["passes"]]
    for one in failed:
        print("FAILED", json.dumps(one))
    for one in found["steps"]:
        print(json.dumps(one))
    print(
        f"{len(found['attention'])} kernels, {len(found['policies'])} policies, {len(failed)} failed: {arguments.out}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
