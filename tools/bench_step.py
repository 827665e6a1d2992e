"""Benchmark of a DiT train step against the same step in PyTorch (diffusers, facebookresearch/DiT), on this machine.

    python -m tools.bench_step                          # beside diffusers
    python -m tools.bench_step --official models.py     # and beside facebookresearch/DiT, whose file you bring

A step is forward, backward and AdamW, of the published network from the same weights and the same latents; the losses
of the first must agree, or nothing is timed. Steps of both sides take turns in one process. Clips have no counterpart
in those networks: they are given images of as many tokens, which is as much work. On a CPU all is float32; on a GPU
both compute in bfloat16, and theirs is compiled and has fused attention.

A CPU on which other programs run is refused: threads of PyTorch wait for one another in every operation, so that load
slows them down more than us.
"""

import argparse
import dataclasses
import functools
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_B, DIT_S, DiTConfig, published
from dit_video.nn.module import Params
from dit_video.published.dit import ClassDiT
from dit_video.training.flops import count_flops, peak_flops
from dit_video.weights import names
from dit_video.weights.names import Dialect

PAGE = Path("docs/bench_step.md")
CHANNELS, NUM_CLASSES = 4, 1000
RATE, BETAS = 1e-4, (0.9, 0.999)
# Of losses: what other sums in another order, and in bfloat16 other roundings, may make of the same numbers.
SAME_FLOAT32, SAME_BFLOAT16 = 1e-4, 5e-2

# Programs that run on average beside this one.
MAX_LOAD = 0.5

Step = Callable[[], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Benchmark case: network, latents and batch.

    Attributes:
        latents: (t, h, w); with patches of two rows and columns, t h w / 4 tokens.
    """

    name: str
    size: DiTConfig
    latents: tuple[int, int, int]
    batch_size: int

    @property
    def side(self) -> int:
        """Side of a square image with as many latents."""
        return math.isqrt(math.prod(self.latents))


IMAGE, CLIP, LONG_CLIP = (1, 32, 32), (4, 32, 32), (16, 32, 32)
ON_CPU = (
    Case(name="DiT-S/2", size=DIT_S, latents=IMAGE, batch_size=4),
    Case(name="DiT-S/2", size=DIT_S, latents=CLIP, batch_size=1),
    Case(name="DiT-B/2", size=DIT_B, latents=IMAGE, batch_size=2),
    Case(name="DiT-B/2", size=DIT_B, latents=CLIP, batch_size=1),
)
ON_GPU = (
    Case(name="DiT-S/2", size=DIT_S, latents=IMAGE, batch_size=256),
    Case(name="DiT-S/2", size=DIT_S, latents=LONG_CLIP, batch_size=16),
    Case(name="DiT-B/2", size=DIT_B, latents=IMAGE, batch_size=128),
    Case(name="DiT-B/2", size=DIT_B, latents=LONG_CLIP, batch_size=8),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Implementation that ours is compared with.

    Attributes:
        official: file with its code; None for diffusers.
    """

    name: str
    official: Path | None = None

    def family(self, case: Case) -> ClassDiT:
        """The network as this peer computes it."""
        patch = 2
        config = dataclasses.replace(published(case.size, patch_size=patch), position_grid=case.side // patch)
        if self.official is None:
            config = dataclasses.replace(config, time_frequency_shift=1, mlp_norm_epsilon=1e-5)
        return ClassDiT(config=config, channels=CHANNELS, condition=ClassCondition(num_classes=NUM_CLASSES))

    def build(self, case: Case, params: dict[str, np.ndarray]) -> tuple[Any, Callable[..., Any]]:
        """Its module with our weights, and how it is called with latents, timesteps and labels."""
        import torch

        family = self.family(case)
        if self.official is None:
            from diffusers import DiTTransformer2DModel

            module: Any = DiTTransformer2DModel.from_config(family.diffusers_config((1, case.side, case.side)))
            dialect = Dialect.DIFFUSERS
        else:
            module = _official(self.official)(
                input_size=case.side,
                patch_size=family.config.patch_size[1],
                in_channels=CHANNELS,
                hidden_size=case.size.hidden_size,
                depth=case.size.depth,
                num_heads=case.size.num_heads,
                num_classes=NUM_CLASSES,
            )
            dialect = Dialect.OFFICIAL
        written = names.write(family.table(), dialect, params)
        module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in written})

        def call(module: Any, x_t: Any, timestep: Any, label: Any) -> Any:
            if dialect is Dialect.OFFICIAL:
                return module(x_t, timestep, label)
            return module(x_t, timestep, class_labels=label, return_dict=False)[0]

        # Trained in evaluation mode: it drops no labels then, and has nothing else that is random.
        return module.eval(), call


def _official(path: Path) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("official_dit", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--official {path}: no Python file; give models.py of facebookresearch/DiT")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DiT


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of a step: latents [B t h w c], target noise, timesteps and labels."""

    x_t: np.ndarray
    eps: np.ndarray
    timestep: np.ndarray
    label: np.ndarray

    @classmethod
    def random(cls, case: Case, shape: tuple[int, int, int]) -> "Inputs":
        rng, B = np.random.default_rng(0), case.batch_size
        x_t, eps = (rng.standard_normal((B, *shape, CHANNELS), np.float32) for _ in range(2))
        return cls(x_t, eps, rng.integers(0, 1000, B), rng.integers(0, NUM_CLASSES, B))


def our_step(family: ClassDiT, params: dict[str, np.ndarray], inputs: Inputs, dtype: Any) -> tuple[Step, int]:
    """A step, and the FLOPs of forward and backward."""
    definition, rule = family.define(dtype), optax.adamw(RATE, *BETAS, weight_decay=0.0)
    t = jnp.asarray([[family.config.time_of(int(n))] for n in inputs.timestep], jnp.float32)
    arguments = (jnp.asarray(inputs.x_t), t, jnp.asarray(inputs.label, jnp.int32), jnp.asarray(inputs.eps))

    def loss(params: Params, x_t, t, label, eps):
        return jnp.mean(jnp.square(definition.bind(params)(x_t, t, label) - eps))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, opt_state, *arguments):
        value, gradient = jax.value_and_grad(loss)(params, *arguments)
        updates, opt_state = rule.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    flops = count_flops(jax.value_and_grad(loss), definition.shapes, *arguments)
    state: list[Any] = [{name: jnp.asarray(value) for name, value in params.items()}]
    state.append(rule.init(state[0]))

    def step() -> float:
        *state[:], value = update(*state, *arguments)
        return float(jax.block_until_ready((state, value))[1])

    return step, flops


def their_step(peer: Peer, case: Case, params: dict[str, np.ndarray], inputs: Inputs, half: bool) -> Step:
    import torch

    module, call = peer.build(case, params)
    device = torch.device("cuda" if half else "cpu")
    module = module.to(device)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, BETAS, weight_decay=0.0, fused=True)
    called = torch.compile(module) if half else module
    first = [torch.from_numpy(np.ascontiguousarray(x[:, 0].transpose(0, 3, 1, 2))) for x in (inputs.x_t, inputs.eps)]
    x_t, eps, timestep, label = (
        x.to(device) for x in (*first, torch.from_numpy(inputs.timestep), torch.from_numpy(inputs.label))
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = call(called, x_t, timestep, label)
        loss = (output[:, :CHANNELS].float() - eps).square().mean()
        loss.backward()
        optimizer.step()
        if half:
            torch.cuda.synchronize()
        return loss.item()

    return step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured seconds of alternating steps."""

    case: Case
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    difference: float
    flops: int

    @property
    def ratios(self) -> list[float]:
        """Their time over ours, for each round."""
        return [b / a for a, b in zip(self.ours, self.theirs)]


def measure(case: Case, peer: Peer, rounds: int, *, half: bool) -> Measured:
    """Times `rounds` turns, after some that are not counted.

    Raises:
        ValueError: both sides compute another loss.
    """
    family = peer.family(case)
    rng = np.random.default_rng(1)
    params = {n: 0.02 * rng.standard_normal(s.shape, np.float32) for n, s in family.define().shapes.items()}
    dtype = jnp.bfloat16 if half else jnp.float32
    image = Inputs.random(case, (1, case.side, case.side))
    inputs = image if case.latents[0] == 1 else Inputs.random(case, case.latents)
    (ours, flops), theirs = our_step(family, params, inputs, dtype), their_step(peer, case, params, image, half)
    checked = ours if inputs is image else our_step(family, params, image, dtype)[0]
    # Of the first step alone: diffusers has embeddings of time and class in every block, which then learn apart.
    difference = abs(checked() / theirs() - 1)
    allowed = SAME_BFLOAT16 if half else SAME_FLOAT32
    if not difference <= allowed:
        raise ValueError(f"{case.name} beside {peer.name}: losses differ by {difference:.2g}, allowed {allowed:g}")
    ours()
    theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, taken in zip((ours, theirs), seconds):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    return Measured(
        case=case,
        peer=peer.name,
        ours=tuple(seconds[0]),
        theirs=tuple(seconds[1]),
        difference=difference,
        flops=flops,
    )


def rows(measured: list[Measured], peak: float | None) -> Iterator[str]:
    heads = ["network", "latents", "batch", "beside", "ours", "theirs", "theirs / ours", "range", "losses differ by"]
    shares = [] if peak is None else ["our MFU", "their MFU"]
    yield f"| {' | '.join(heads + shares)} |"
    yield "|---" * len(heads + shares) + "|"
    for one in measured:
        ours, theirs = statistics.median(one.ours), statistics.median(one.theirs)
        cells = [
            one.case.name,
            " x ".join(map(str, one.case.latents)),
            str(one.case.batch_size),
            one.peer,
            f"{1000 * ours:.0f} ms",
            f"{1000 * theirs:.0f} ms",
            f"{statistics.median(one.ratios):.2f}",
            f"{min(one.ratios):.2f} to {max(one.ratios):.2f}",
            f"{one.difference:.0e}",
        ]
        if peak is not None:
            cells += [f"{one.flops / seconds / peak:.0%}" for seconds in (ours, theirs)]
        yield f"| {' | '.join(cells)} |"


def page(measured: list[Measured], command: str, rounds: int, machine: str, peak: float | None) -> str:
    dtype = "float32" if peak is None else "bfloat16"
    return f"""# A step of training beside PyTorch

    {command}

Forward, backward and AdamW of the published DiT in {dtype}, from the same weights and the same latents, medians of
{rounds} steps that took turns in one process. A ratio above 1 means that ours is faster; its range is over turns. Clips
have no counterpart in those networks: theirs get an image of as many tokens. diffusers has embeddings of time and class
in every block, which are more parameters to update. `tools/bench_step.py` says more.

{machine}

{chr(10).join(rows(measured, peak))}
"""


def _machine(threads: int, half: bool) -> str:
    import torch

    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}"
    if half:
        return f"{jax.devices()[0].device_kind}; {versions}, compiled, with fused attention."
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpu[0].split(":")[1].strip() if cpu else "CPU"
    return f"{model}, {threads} threads of either side; {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="models.py of facebookresearch/DiT; it needs timm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of either side, on a CPU")
    args = parser.parse_args()
    # JAX takes most of a GPU's memory when it starts, unless configured not to.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import torch

    half = torch.cuda.is_available()
    if half and jax.default_backend() != "gpu":
        parser.error("PyTorch sees a GPU and JAX does not: install jax[cuda], or hide it with CUDA_VISIBLE_DEVICES=")
    if not half:
        if (load := os.getloadavg()[0]) > MAX_LOAD:
            parser.error(f"the load of this machine is {load:.1f}, at most {MAX_LOAD:g} is allowed: wait for others")
        # Before JAX starts: it has as many threads as it may use cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        torch.set_num_threads(args.threads)
    peers = [Peer(name="diffusers")]
    if args.official is not None:
        peers.append(Peer(name="official code", official=args.official))
    measured = []
    for case in ON_GPU if half else ON_CPU:
        for peer in peers:
            measured.append(measure(case, peer, args.rounds, half=half))
            print(list(rows(measured[-1:], None))[-1])
    official = "" if args.official is None else f" --official {args.official.name}"
    command = f"python -m tools.bench_step{official} --rounds {args.rounds} --threads {args.threads}"
    peak = peak_flops(jax.devices()[0].device_kind) if half else None
    PAGE.write_text(page(measured, command, args.rounds, _machine(args.threads, half), peak), encoding="utf-8")


if __name__ == "__main__":
    main()
