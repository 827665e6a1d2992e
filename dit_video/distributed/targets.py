"""Compilation targets by name (TPU topology, GPU nodes, fake CPUs): `v6e:16x16`, `v6e:16x16*4`, `h100:16x8`, `cpu:256`.

A target need not exist here: compilers of TPUs and GPUs work from a description of the device.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from dit_video.distributed.hardware import CHIPS, Chip

TPUS = ("v5e", "v5p", "v6e", "tpu7x")
GPUS = ("a100", "h100", "h200", "b200")
GPU_MEMORY_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
# Of a slice of v5e or v6e, whose sides are two.
_LONGEST_SIDE = 16
_EXAMPLES = "v6e:16x16, v6e:16x16*4 (four slices), v5p:8x8x4, h100:16x8 (16 nodes of 8 GPUs) or cpu:256"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices to run on or to compile for.

    Attributes:
        name: as it was given.
        chip: None for fake devices, of which nothing is known.
        family: what stands before the colon: one of `TPUS`, of `GPUS`, or cpu.
        size: TPU: chips along each side of a slice; GPU: nodes, and devices in each; of fake devices, their number.
        num_slices: groups of TPUs that only a data-centre network joins.
        fake_memory: bytes of memory that fake devices are taken to have; None for no limit.
    """

    name: str
    chip: Chip | None
    family: str
    size: tuple[int, ...]
    num_slices: int = 1
    fake_memory: int | None = None

    @property
    def num_devices(self) -> int:
        """Number of devices as JAX counts them: two per tpu7x chip."""
        return math.prod(self.size) * self.num_slices * (2 if self.family == "tpu7x" else 1)

    @property
    def domain_size(self) -> int:
        """Devices of a slice (TPU) or node (GPU), which fast links join."""
        return self.num_devices // (self.size[0] if self.family in GPUS else self.num_slices)

    @property
    def memory(self) -> int | None:
        """Bytes of device memory that a program may use."""
        if self.chip is None or self.family not in GPUS:
            return self.fake_memory if self.chip is None else self.chip.hbm
        return int(self.chip.hbm * _gpu_memory_fraction())

    @property
    def compiler_options(self) -> dict[str, bool | str]:
        """XLA options for a device that does not exist here: no autotuning, which would measure kernels on it."""
        # Without measurements no tiling is known for some matrix products that Triton would compute.
        return {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False} if self.family in GPUS else {}

    def doubled(self) -> "Target | None":
        """The next larger target of its family, twice as many devices; fake ones have none."""
        if self.family == "cpu":
            return None
        slices = self.num_slices
        if self.family in GPUS:
            size = (2 * self.size[0], *self.size[1:])
        else:
            # The shortest side grows, and the sides stay in order, as such slices are sold.
            shortest, *rest = sorted(self.size)
            size = tuple(sorted((2 * shortest, *rest)))
            if len(size) == 2 and size[-1] > _LONGEST_SIDE:
                size, slices = self.size, 2 * slices
        text = f"{self.family}:{'x'.join(map(str, size))}" + (f"*{slices}" if slices > 1 else "")
        return dataclasses.replace(self, name=text, size=size, num_slices=slices)

    def devices(self) -> Sequence[jax.Device]:
        """The devices of the target; fake ones must have been asked for before JAX started its backend."""
        if self.family == "cpu":
            there = jax.devices("cpu")
            if len(there) < self.size[0]:
                raise ValueError(f"{self.name}: this process was started with {len(there)} fake devices")
            return there[: self.size[0]]
        return self._gpus() if self.family in GPUS else self._tpus()

    def _tpus(self) -> Sequence[jax.Device]:
        self._need(("libtpu",), "libtpu", "plan-tpu", "700 MB")
        topology = f"{self.family}:{'x'.join(map(str, self.size))}"
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=self.num_slices)
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"{self.name}: libtpu knows no topology {topology}: {str(error)[:300]}") from error
        return described.devices

    def _gpus(self) -> Sequence[jax.Device]:
        self._need(("jax_cuda13_plugin", "nvidia.cudnn"), "the CUDA plug-in of JAX with cuDNN", "plan-gpu", "2 GB")
        assert self.chip is not None, "`parse_target` gives every GPU target its chip"
        nodes, devices = self.size
        topology = f"1x{nodes}x{devices}"
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=describe_gpu(self.chip), topology=topology
        ).devices

    def _need(self, modules: Sequence[str], compiler: str, extra: str, size: str) -> None:
        if all(_installed(module) for module in modules):
            return
        raise ValueError(
            f"{self.name}: compiling for it needs its compiler, {compiler}, but no such device: "
            f"pip install -c constraints.txt -e '.[{extra}]' (about {size} on disk); without it, "
            f"--target=cpu:{self.num_devices} is an estimate on fake devices"
        )


def parse_target(text: str) -> Target:
    """`cpu:N`; a TPU with the sides of its slice and, after `*`, how many slices; or a GPU with NODESxDEVICES.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    family, _, rest = text.partition(":")
    if family not in (*TPUS, *GPUS, "cpu"):
        raise ValueError(f"{text}: {family or 'a target'} is not known; give one such as {_EXAMPLES}")
    number = r"[1-9]\d*"
    shape, form = rf"{number}(x{number}){{1,2}}(\*{number})?", "ROWSxCOLUMNS (x DEPTH), with *SLICES for several"
    if family == "cpu":
        shape, form = number, "N"
    elif family in GPUS:
        shape, form = f"{number}x{number}", "NODESxDEVICES"
    if not re.fullmatch(shape, rest):
        raise ValueError(f"{text}: must be {family}:{form}; such as {_EXAMPLES}")
    sides, _, slices = rest.partition("*")
    size = tuple(int(n) for n in sides.split("x"))
    return Target(name=text, chip=CHIPS.get(family), family=family, size=size, num_slices=int(slices or 1))


def _gpu_memory_fraction() -> float:
    """Fraction of GPU memory that JAX preallocates (XLA_CLIENT_MEM_FRACTION, with the default of JAX)."""
    return float(os.environ.get(GPU_MEMORY_VARIABLE) or 0.75)


def describe_gpu(chip: Chip) -> str:
    """Description of a GPU for XLA's compiler: a GpuTargetConfigProto as text.

    Limits of threads, blocks and registers are those of every NVIDIA GPU since compute capability 8.0 (CUDA programming
    guide, technical specifications per compute capability).
    """
    cores = chip.cores
    assert cores is not None, f"{chip.kind}: only GPUs have cores, and only GPUs are described"
    # Kernels may use instructions of exactly this generation from 9.0 on (sm_90a, sm_100a).
    extension = "ACCELERATED_FEATURES" if cores.compute_capability >= 9 else "NONE"
    return f"""
platform_name: "CUDA"
device_description_str: "{chip.kind}"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {cores.compute_capability} feature_extension: {extension} }}
  device_memory_size: {chip.hbm}
  memory_bandwidth: {chip.hbm_bandwidth:.0f}
  l2_cache_size: {cores.l2_cache}
  core_count: {cores.count}
  fpus_per_core: {cores.float_units}
  clock_rate_ghz: {cores.clock}
  shared_memory_per_core: {cores.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {cores.shared_memory - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


def _installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _installed(parent)) and importlib.util.find_spec(module) is not None
