"""Specifications of TPUs and GPUs from vendors' data sheets: memory, peak FLOP/s, bandwidths.

All numbers are of one device as JAX counts devices, and bandwidths are of one direction, the sum over all links.
"""

import dataclasses

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPUCores:
    """Properties of a GPU's cores that XLA's compiler tiles kernels by.

    Attributes:
        compute_capability: its major number.
        count: streaming multiprocessors.
        float_units: of each, for float32.
        clock: GHz.
        shared_memory: bytes of each, of which a kernel may have all but 1 KiB.
        l2_cache: bytes of the device.
    """

    compute_capability: int
    count: int
    float_units: int
    clock: float
    shared_memory: int
    l2_cache: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Specification of one kind of device.

    Attributes:
        kind: how JAX's `device_kind` starts.
        hbm: bytes of device memory; of a GPU, what its driver leaves of it.
        flops: dense peak at bfloat16, FLOP/s.
        hbm_bandwidth: bytes/s.
        links: bytes/s to the other devices of its slice (TPU: ICI) or node (GPU: NVLink).
        network: bytes/s to other slices or nodes, its share of what the host has; None where not published.
        cores: of a GPU.
    """

    kind: str
    hbm: int
    flops: float
    hbm_bandwidth: float
    links: float
    network: float | None
    cores: GPUCores | None = None


_HOPPER = GPUCores(
    compute_capability=9, count=132, float_units=128, clock=1.98, shared_memory=228 * KIB, l2_cache=50 * MIB
)

# By the name that targets of `dit-video plan` have. Cloud documents TPU links as the sum of both directions, and the
# data-centre network in bits; the arithmetic below turns them into one direction and bytes. Cores and usable memory of
# GPUs are those that XLA's own descriptions of these devices have (openxla/xla, xla/backends/gpu/target_config/specs).
CHIPS = {
    # docs.cloud.google.com/tpu/docs/v4; links: 2400 Gb/s (cloud.google.com/blog, introducing v5p).
    "v4": Chip(kind="TPU v4", hbm=32 * GIB, flops=275e12, hbm_bandwidth=1200e9, links=2400e9 / 8, network=None),
    # docs.cloud.google.com/tpu/docs/v6e, column v5e; network: 6.4 Tb/s for a pod of 256.
    "v5e": Chip(
        kind="TPU v5 lite",
        hbm=16 * GIB,
        flops=197e12,
        hbm_bandwidth=800e9,
        links=1600e9 / 8,
        network=6.4e12 / 8 / 256,
    ),
    # docs.cloud.google.com/tpu/docs/v5p
    "v5p": Chip(kind="TPU v5", hbm=95 * GIB, flops=459e12, hbm_bandwidth=2765e9, links=1200e9 / 2, network=50e9 / 8),
    # docs.cloud.google.com/tpu/docs/v6e; network as docs.cloud.google.com/tpu/docs/tpu7x has it for v6e.
    "v6e": Chip(
        kind="TPU v6 lite", hbm=32 * GIB, flops=918e12, hbm_bandwidth=1600e9, links=800e9 / 2, network=100e9 / 8
    ),
    # docs.cloud.google.com/tpu/docs/tpu7x; JAX sees each of a chip's two TensorCores as a device: half of everything.
    "tpu7x": Chip(
        kind="TPU7x",
        hbm=96 * GIB,
        flops=2307e12 / 2,
        hbm_bandwidth=7380e9 / 2,
        links=1200e9 / 2 / 2,
        network=100e9 / 8 / 2,
    ),
    # NVIDIA A100 80GB SXM data sheet; network: DGX A100 has one 200 Gb/s port a GPU.
    "a100": Chip(
        kind="NVIDIA A100",
        hbm=85_100_068_864,
        flops=312e12,
        hbm_bandwidth=2039e9,
        links=600e9 / 2,
        network=200e9 / 8,
        cores=GPUCores(
            compute_capability=8, count=108, float_units=64, clock=1.41, shared_memory=164 * KIB, l2_cache=40 * MIB
        ),
    ),
    # NVIDIA H100 SXM data sheet (989 TFLOP/s dense; 1979 is with sparsity); network: DGX H100, one 400 Gb/s port a GPU.
    "h100": Chip(
        kind="NVIDIA H100",
        hbm=84_942_979_072,
        flops=989e12,
        hbm_bandwidth=3350e9,
        links=900e9 / 2,
        network=400e9 / 8,
        cores=_HOPPER,
    ),
    # NVIDIA H200 SXM data sheet; network as DGX H200.
    "h200": Chip(
        kind="NVIDIA H200",
        hbm=151_397_597_184,
        flops=989e12,
        hbm_bandwidth=4800e9,
        links=900e9 / 2,
        network=400e9 / 8,
        cores=_HOPPER,
    ),
    # NVIDIA DGX B200 data sheet, an eighth of it: 64 TB/s, 14.4 TB/s NVLink; one 400 Gb/s port a GPU.
    "b200": Chip(
        kind="NVIDIA B200",
        hbm=191_514_411_008,
        flops=2250e12,
        hbm_bandwidth=8000e9,
        links=1800e9 / 2,
        network=400e9 / 8,
        cores=GPUCores(
            compute_capability=10,
            count=148,
            float_units=128,
            clock=1.965,
            shared_memory=228 * KIB,
            l2_cache=132_644_864,
        ),
    ),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest known prefix of a device's kind; None where it is not known."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind)) if known else None
