"""Barriers of a save by several processes, here threads with a coordination service: one fails, one is silent."""

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from jaxlib import _jax
from orbax.checkpoint._src.futures.signaling_client import JaxDistributedSignalingClient
from orbax.checkpoint.experimental.v1._src.synchronization import signaling_client

from dit_video.checkpoint import barriers

MEMBERS = range(3)
PLACE = "dit_video/barriers"


@pytest.fixture(scope="module")
def clients():
    """One of each process, as Orbax has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, len(MEMBERS))
    made = [_jax.get_distributed_runtime_client(address, me, shutdown_timeout=5) for me in MEMBERS]
    with ThreadPoolExecutor(len(MEMBERS)) as pool:
        list(pool.map(lambda client: client.connect(), made))
        wrapped = [JaxDistributedSignalingClient.__new__(JaxDistributedSignalingClient) for _ in made]
        for one, client in zip(wrapped, made):
            one._client = client
        yield wrapped
        list(pool.map(lambda client: client.shutdown(), made))
    service.shutdown()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(len(MEMBERS)) as pool:
        yield pool


def come(pool, clients, name: str, *who: int, seconds: float = 60) -> dict[int, Future]:
    until = time.monotonic() + seconds
    return {me: pool.submit(barriers.wait, clients[me], name, me, MEMBERS, until) for me in who}


@pytest.mark.parametrize("last", MEMBERS)
def test_nobody_passes_before_all_have_come_and_only_one_key_stays(clients, pool, last):
    name = f"[op=1] pass/{last}"
    waiting = come(pool, clients, name, *(me for me in MEMBERS if me != last))
    time.sleep(0.2)
    assert not any(future.done() for future in waiting.values())
    for future in (waiting | come(pool, clients, name, last)).values():
        future.result(10)
    assert [key for key, _ in clients[0].key_value_dir_get(f"{PLACE}/{name}/")] == [f"{PLACE}/{name}/open"]


@pytest.mark.parametrize("failing", MEMBERS)
def test_where_one_has_failed_the_others_end_with_what_it_said(clients, pool, monkeypatch, failing):
    monkeypatch.setattr(barriers, "SLICE", 1)
    waiting = come(pool, clients, f"[op=2{failing}.params] commit/1", *(me for me in MEMBERS if me != failing))
    other = come(pool, clients, "[op=3] of another save/1", failing, seconds=1)
    clients[failing].key_value_set(barriers.failed(f"2{failing}"), "process 1 of 3: no space", allow_overwrite=True)
    began = time.monotonic()
    for future in waiting.values():
        with pytest.raises(barriers.AnotherFailed, match="process 1 of 3: no space"):
            future.result(10)
    assert time.monotonic() - began < 2 * 2 * barriers.SLICE
    with pytest.raises(TimeoutError, match="not all processes came in time"):
        other[failing].result(10)


def test_a_silent_one_is_waited_for_as_long_as_a_save_may_take(clients, pool):
    began = time.monotonic()
    waiting = come(pool, clients, "[op=4] silent/1", 0, 2, seconds=1)
    for future in waiting.values():
        with pytest.raises(TimeoutError, match="silent"):
            future.result(10)
    assert time.monotonic() - began >= 1


def test_the_minute_that_is_stated_is_kept_and_orbax_waits_as_is_said_here():
    assert 2 * barriers.SLICE <= 60
    assert barriers.failed("7") == "dit_video/failed/7"
    barriers.end_barriers_early()
    assert signaling_client._SignalingClient.wait_at_barrier is barriers._wait_at_barrier
