"""Clips per second of dit_video's I3D on this machine, and of the same network in PyTorch where torch is installed.

    python tools/bench_i3d.py --num_frames 16 --size 64 --batch_size 1 4

The share of the ceiling counts the products that minimal filtering leaves, not those of the plain network. Both run
alternately in one process, so that other load on the machine meets both; the best of several runs counts.
"""

import argparse
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.evaluation import i3d, i3d_weights
from dit_video.evaluation.protocol import ResizeRule
from dit_video.training.flops import count_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="height and width of the clips before the resize")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.num_frames < i3d.MIN_FRAMES:
        parser.error(f"--num_frames={args.num_frames}, must be at least {i3d.MIN_FRAMES}")

    device = jax.devices()[0]
    print(f"{device.device_kind}, {len(os.sched_getaffinity(0))} CPU cores, load {os.getloadavg()[0]:.1f}")
    definition, weights = i3d.pretrained()
    ceiling = matmul_flops_per_second(args.repeats)
    print(f"ceiling: {ceiling / 1e9:.0f} GFLOP/s in a float32 matrix product at full precision")
    for batch_size in args.batch_size:
        shape = (batch_size, args.num_frames, args.size, args.size, 3)
        video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        start = time.perf_counter()
        runs = {"dit_video": jax_run(video)}
        compile_seconds = time.perf_counter() - start
        if importlib.util.find_spec("torch"):
            runs["torch"] = torch_run(video)
        results = {name: run() for name, run in runs.items()}
        seconds = best(runs, args.repeats)
        for name, value in seconds.items():
            print(f"batch {batch_size}, {name:9s} {value / batch_size:.3f} s/clip, {batch_size / value:.2f} clips/s")
        print(f"         compiled in {compile_seconds:.1f} s")
        flops = count_flops(
            lambda weights, clips: i3d.forward(definition, weights, clips, ResizeRule.TF1), weights, video
        )
        print(
            f"         {flops / batch_size / 1e9:.1f} GFLOP a clip, {flops / seconds['dit_video'] / 1e9:.0f} GFLOP/s: "
            f"{flops / seconds['dit_video'] / ceiling:.0%} of {ceiling / 1e9:.0f} GFLOP/s"
        )
        if "torch" in runs:
            ratio = seconds["torch"] / seconds["dit_video"]
            difference = np.linalg.norm(results["torch"] - results["dit_video"]) / np.linalg.norm(results["torch"])
            print(f"         {ratio:.2f} times the speed of torch, relative difference of logits {difference:.1e}")


def matmul_flops_per_second(repeats: int) -> float:
    """What the default device reaches in a large matrix product of the precision that I3D is computed in."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=i3d.PRECISION)).lower(x).compile()
    return 2 * size**3 / best({"product": lambda: jax.block_until_ready(product(x))}, repeats)["product"]


def best(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least wall time of each of the runs, which take turns."""
    seconds = dict.fromkeys(runs, np.inf)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def jax_run(video: np.ndarray) -> Callable[[], np.ndarray]:
    """Compiles our network for this shape."""
    definition, weights = i3d.pretrained()
    compiled = i3d.forward.lower(definition, weights, video, ResizeRule.TF1).compile()
    return lambda: np.asarray(compiled(weights, video))


def torch_run(video: np.ndarray) -> Callable[[], np.ndarray]:
    """The network on PyTorch's conv3d and max_pool3d, fed with the clips as we preprocess them.

    Channels last, which is the faster layout here.
    """
    import torch  # Not a dependency.
    from torch.nn import functional

    tensors = i3d_weights.load()
    folded = {
        name.removesuffix("/kernel"): i3d.fold(tensors, name.removesuffix("/kernel"))
        for name in list(tensors)
        if name.endswith("/kernel")
    }
    parameters = {
        name: (
            torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2)).contiguous(memory_format=torch.channels_last_3d),
            torch.from_numpy(bias),
        )
        for name, (kernel, bias) in folded.items()
    }
    x_0 = np.array(jax.jit(i3d.preprocess, static_argnums=1)(video, ResizeRule.TF1))

    def same(x, window, stride, value):
        padding = []
        for size, extent, step in reversed(list(zip(x.shape[2:], window, stride))):
            total = max((-(-size // step) - 1) * step + extent - size, 0)
            padding += [total // 2, total - total // 2]
        return functional.pad(x, padding, value=value)

    def conv(x, name, stride=1):
        kernel, bias = parameters[name]
        x = same(x, kernel.shape[2:], (stride,) * 3, 0.0)
        return torch.relu_(functional.conv3d(x, kernel, bias, stride))

    def pool(x, window, stride):
        return functional.max_pool3d(same(x, window, stride, -np.inf), window, stride)

    def inception(x, name):
        unit = functools.partial("{}/Branch_{}/Conv3d_{}".format, name)
        return torch.cat(
            [
                conv(x, unit(0, "0a_1x1")),
                conv(conv(x, unit(1, "0a_1x1")), unit(1, "0b_3x3")),
                conv(conv(x, unit(2, "0a_1x1")), unit(2, "0b_3x3")),
                conv(pool(x, (3, 3, 3), (1, 1, 1)), unit(3, "0b_1x1")),
            ],
            dim=1,
        )

    @torch.inference_mode()
    def run() -> np.ndarray:
        x = torch.from_numpy(x_0).permute(0, 4, 1, 2, 3)
        x = pool(conv(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = pool(conv(conv(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        x = inception(inception(x, "Mixed_3b"), "Mixed_3c")
        x = pool(x, (3, 3, 3), (2, 2, 2))
        for letter in "bcdef":
            x = inception(x, f"Mixed_4{letter}")
        x = inception(inception(pool(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
        kernel, bias = parameters["Logits/Conv3d_0c_1x1"]
        x = functional.conv3d(functional.avg_pool3d(x, (2, 7, 7), 1), kernel, bias)
        return x.mean(dim=(2, 3, 4)).numpy()

    return run


if __name__ == "__main__":
    main()
