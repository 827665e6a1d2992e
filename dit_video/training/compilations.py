"""How many programs XLA has made in this process: what shows that none is made while a run trains."""

import jax

# What JAX reports after each compilation, and after each program that it finds compiled on disk.
_EVENT = "/jax/core/compile/backend_compile_duration"
_count = 0


def num_compiled() -> int:
    """Programs that were compiled in this process since this module was imported."""
    return _count


def _listen(event: str, duration_secs: float, **_: object) -> None:
    del duration_secs
    global _count
    _count += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)
