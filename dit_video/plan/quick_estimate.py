"""Closed-form estimates of memory and step time for meshes, rematerialisation and gradient accumulation.

Rough, but fast for thousands of candidates. Compiled plans correct the estimates: the size of the optimizer state,
and the factor by which temporaries were misjudged.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator

from jax.sharding import AbstractMesh

from dit_video.distributed.sharding import MESH_AXES, partition_spec
from dit_video.distributed.targets import Target
from dit_video.dit.network import Remat, TransformerConfig
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.plan.compile import Plan
from dit_video.plan.programs import gradient_flops
from dit_video.plan.roofline import StepCosts, roofline
from dit_video.run import workload

Sizes = tuple[int, int, int, int]

# What the backward pass finds of each layer, in rows of the hidden size a token: whole on every device along `tensor`,
# and split. Counted on a block: two residual streams; norms, queries, keys, values, attention, SwiGLU (8/3 wide, three
# times). What attention made is kept by all.
_KEPT = {
    Remat.NOTHING_RECOMPUTED: (8, 18),
    Remat.DOTS: (3, 10),
    Remat.FULL: (1, 1),
    Remat.OFFLOAD: (0, 1),
}
_COMPUTE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Candidate configuration (remat, gradient accumulation, mesh); none changes what is computed.

    Attributes:
        remat: None for a network that has no such choice.
        mesh: devices along each of `MESH_AXES`.
    """

    remat: Remat | None
    num_microbatches: int
    mesh: Sizes

    def overrides(self, experiment: Experiment) -> tuple[str, ...]:
        """Changes of `experiment`, as command-line overrides."""
        try:
            # On as many devices: an axis that is -1 stays so where it comes out right.
            there = experiment.mesh.resolve(math.prod(self.mesh))
        except ValueError:
            there = dataclasses.astuple(experiment.mesh)
        words = [f"--config.mesh.{axis}={n}" for axis, n, current in zip(MESH_AXES, self.mesh, there) if n != current]
        if self.num_microbatches != experiment.num_microbatches:
            words.append(f"--config.num_microbatches={self.num_microbatches}")
        if self.remat is not None and self.remat is not remat_of(experiment):
            words.append(f"--config.task.network.remat={self.remat.value}")
        return tuple(words)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated memory and time of one device.

    Attributes:
        memory: bytes at the peak.
        temporaries: of them, what lives during a step only.
        seconds: of a step in the best case.
        exchange: seconds of it that links and network take, in the background or not.
    """

    candidate: Candidate
    memory: float
    temporaries: float
    seconds: float
    exchange: float


class Estimator:
    """Estimates for `experiment` on `target`, whose chip must be known."""

    def __init__(self, experiment: Experiment, target: Target):
        assert target.chip is not None, f"{target.name}: estimates need a known chip"
        self.experiment, self.target, self._chip = experiment, target, target.chip
        self._definition = define(experiment.task.init)
        self._work = workload.measure_work(experiment)
        self._recomputed = _recomputed(experiment)
        # Parameters, their average and two moments, until a plan says what there is.
        self._copies, self._fixed_bytes = 4.0, 0
        # What temporaries of a policy were over what they were estimated to be.
        self._factors: dict[Remat | None, float] = {}

    def on(self, target: Target) -> "Estimator":
        """A copy for other devices, with the corrections learned."""
        assert target.chip is not None, f"{target.name}: estimates need a known chip"
        other = copy.copy(self)
        other.target, other._chip = target, target.chip
        return other

    def current(self) -> Candidate:
        """The candidate that the experiment itself is."""
        data, fsdp, context, tensor = self.experiment.mesh.resolve(self.target.num_devices)
        return Candidate(remat_of(self.experiment), self.experiment.num_microbatches, (data, fsdp, context, tensor))

    def candidates(self) -> list[Candidate]:
        """All candidates that divide rows, tokens and parameters evenly."""
        candidates = []
        for mesh in self._meshes():
            if self._params(mesh) is None:
                continue
            parts = [1, *doublings(1, self.experiment.data.batch_size // (mesh[0] * mesh[1]))]
            candidates += [Candidate(remat, n, mesh) for remat, n in itertools.product(self._recomputed, parts)]
        return candidates

    def divides(self, candidate: Candidate) -> bool:
        """Whether a candidate's mesh divides the parameters."""
        return self._params(candidate.mesh) is not None

    def learn(self, candidate: Candidate, compiled: Plan) -> None:
        """Corrects the estimates by a compiled plan of `candidate`, on this target or another."""
        sizes = {part.name: part.bytes for part in compiled.memory.parts}
        self._fixed_bytes = sizes["frozen parts"] + sizes["batch"] + compiled.memory.padding
        self._copies = (sum(sizes.values()) - sizes["frozen parts"] - sizes["batch"]) / sizes["parameters"]
        self._factors[candidate.remat] = compiled.memory.temporaries / self._temporaries(candidate, sizes["parameters"])

    def estimate(self, candidate: Candidate) -> Estimate:
        """Memory and time of a candidate.

        Raises:
            ValueError: its mesh does not divide the parameters.
        """
        params = self._params(candidate.mesh)
        if params is None:
            raise ValueError(f"{candidate.mesh}: does not divide the parameters")
        known = list(self._factors.values())
        factor = self._factors.get(candidate.remat, sum(known) / len(known) if known else 1.0)
        temporaries = factor * self._temporaries(candidate, params)
        state = params * self._copies + self._fixed_bytes
        inner, outer = self._traffic(candidate, params)
        work = StepCosts(
            flops=self._work.flops / self.target.num_devices,
            recomputed_flops=self._recomputed[candidate.remat] / self.target.num_devices,
            memory_bytes=2 * state,
            inner_bytes=inner,
            outer_bytes=outer,
        )
        bounds = roofline(self._chip, work)
        seconds = max(bound.seconds for bound in bounds)
        return Estimate(
            candidate, state + temporaries, temporaries, seconds, sum(bound.seconds for bound in bounds[2:])
        )

    def _temporaries(self, candidate: Candidate, params: int) -> float:
        """Bytes of temporaries: gradients, two layers of gathered parameters, and saved activations."""
        data, fsdp, context, tensor = candidate.mesh
        gradients = params * (2 if candidate.num_microbatches > 1 else 1)
        rows = self.experiment.data.batch_size / (data * fsdp * candidate.num_microbatches)
        network = _network(self.experiment)
        if network is None:
            # Feature maps of the first layers, which are the largest, a few of them.
            clips = self.experiment.data.clips
            return gradients + rows * clips.num_frames * math.prod(clips.size) * 4 * 64
        assert candidate.remat is not None, "candidates of a denoiser have a rematerialisation policy"
        row = self._tokens * rows / context * network.hidden_size * _COMPUTE_BYTES
        (whole, split), (working, working_split) = _KEPT[candidate.remat], _KEPT[Remat.NOTHING_RECOMPUTED]
        saved = network.depth * (whole + split / tensor) + working + working_split / tensor
        return gradients + 2 * params * fsdp * context / network.depth + row * saved

    def _traffic(self, candidate: Candidate, params: int) -> tuple[int | float, int | float]:
        """Bytes that a device receives in a step from its own slice or node, and from others."""
        data, fsdp, context, tensor = candidate.mesh
        ways = fsdp * context
        # Parameters are gathered for the forward and for the backward pass, gradients scattered, of each part.
        gathers = 3 * candidate.num_microbatches
        inner, outer = _gathered(params * ways, ways, gathers, self.target.domain_size // tensor)
        # Gradients are summed over data: a scatter and a gather of what a device holds.
        near, far = _gathered(params, data, 2, self.target.domain_size // (tensor * ways))
        network = _network(self.experiment)
        if network is None:
            return inner + near, outer + far
        rows = self.experiment.data.batch_size / (data * fsdp)
        row = self._tokens * rows / context * network.hidden_size * _COMPUTE_BYTES * network.depth
        passes = 3 if self._recomputed[candidate.remat] else 2
        # Two sums a layer and pass over tensor.
        near += passes * 2 * 2 * row * (tensor - 1) / tensor
        num_domains = max(1, context * tensor // self.target.domain_size)
        if context > 1 and network.num_heads // tensor % context:
            # A ring: keys and values pass every other device, on the way back with their gradients.
            ring = row / tensor * ((passes - 1) * 2 * (context - 1) + 4 * context)
            near, far = near + ring, far + (ring if num_domains > 1 else 0)
        else:
            # Queries, keys, values and their result change places; what stays in one slice or node, stays inside.
            swapped = passes * 4 * row / tensor
            far += swapped * (num_domains - 1) / num_domains
            near += swapped * ((context - 1) / context - (num_domains - 1) / num_domains)
        return inner + near, outer + far

    @property
    def _tokens(self) -> int:
        """Tokens of one clip."""
        return (self._work.tokens or 0) // self._work.clips

    def _meshes(self) -> Iterator[Sizes]:
        """All mesh shapes that rows and tokens divide over."""
        rows, total = self.experiment.data.batch_size, self.target.num_devices
        splits = _network(self.experiment) is not None
        for context, tensor in itertools.product(_divisors(total), repeat=2):
            if (
                total % (context * tensor)
                or (splits and self._tokens % context)
                or (not splits and context * tensor > 1)
            ):
                continue
            left = total // (context * tensor)
            if rows % left == 0:
                sizes = ((left // fsdp, fsdp, context, tensor) for fsdp in _divisors(left))
                yield from (mesh for mesh in sizes if mesh[0] % self.target.num_slices == 0)

    def _params(self, mesh: Sizes) -> int | None:
        """Bytes of parameters on one device; None where the mesh does not divide them."""
        total, abstract = 0, AbstractMesh(mesh, MESH_AXES)
        for name, shape in self._definition.shapes.items():
            try:
                spec = partition_spec(self._definition.axes[name], shape.shape, abstract)
            except ValueError:
                return None
            axes = [axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)]
            size = math.prod(shape.shape) * shape.dtype.itemsize
            total += size // math.prod(abstract.shape[axis] for axis in axes)
        return total


def remat_of(experiment: Experiment) -> Remat | None:
    """Rematerialisation policy of an experiment's network; None where it has none."""
    network = _network(experiment)
    return None if network is None else network.remat


def _network(experiment: Experiment) -> TransformerConfig | None:
    return experiment.task.backbone


def _recomputed(experiment: Experiment) -> dict[Remat | None, int]:
    """Recomputed FLOPs of a step by rematerialisation policy."""
    if _network(experiment) is None:
        return {None: 0}
    no_remat, dots, full = (
        gradient_flops(experiment, remat) for remat in (Remat.NOTHING_RECOMPUTED, Remat.DOTS, Remat.FULL)
    )
    return {
        Remat.NOTHING_RECOMPUTED: 0,
        Remat.DOTS: dots - no_remat,
        Remat.FULL: full - no_remat,
        Remat.OFFLOAD: full - no_remat,
    }


def _gathered(whole: int | float, size: int, times: int, domain: int) -> tuple[float, float]:
    """All-gather of `whole` over `size` devices: least bytes received from inside and outside a device's domain."""
    num_domains = size // min(size, max(1, domain))
    part = times * whole / size
    return part * (size - num_domains), part * (num_domains - 1)


def doublings(number: int, whole: int) -> list[int]:
    """Doublings of `number` (2x, 4x, ...) that divide `whole`."""
    multiples = itertools.takewhile(lambda n: whole % n == 0, (number * 2**k for k in itertools.count(1)))
    return list(multiples)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
