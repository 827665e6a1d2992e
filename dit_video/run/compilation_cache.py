"""JAX's compilation cache: programs compiled once are read back by the next start."""

import hashlib
import platform
from pathlib import Path

import jax

from dit_video.storage.user_cache import user_cache


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, so that a run which goes on does not wait for the compiler again.

    JAX_COMPILATION_CACHE_DIR says where, if set; a path that all hosts see is best. JAX_ENABLE_COMPILATION_CACHE=false
    keeps nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute] (JAX adds its options late)
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled" / _kind_of_machine()))


def _kind_of_machine() -> str:
    """Name of the type of this machine, architecture and CPU features: programs of one type may not run on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
