"""`lrp_jax.batch`: stores of explained data sets; interruptions, several processes, and what can go wrong."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import batch_script
import jax
import numpy as np
import pytest

import lrp_jax

pytest.importorskip("zarr")

from lrp_jax import batch
from lrp_jax.batch import program, reading, store as stores

SCRIPT = Path(batch_script.__file__)
CHUNKS = 8


def start(store, *arguments, devices=1, seconds=0.0):
    """Starts the script in its own process, with so many devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), str(store), str(seconds), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    """Waits for the end of the process, which succeeds."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a store that one process made without interruption, on one device."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    ended(start(folder))
    return files(folder)


def kill_at_random(store, kills, seed):
    """Kills the script at random moments and starts it again, until it ends. Returns the complete chunks at each kill.

    A moment is shortly after the folder of the store appears, with a hidden name or its own, or after 0 to 2 chunks.
    """
    moments, complete = random.Random(seed), [0]
    for _ in range(kills):
        process = start(store, devices=2, seconds=0.02)
        while not (store.exists() or list(store.parent.glob(".*.part"))) and process.poll() is None:
            time.sleep(0.002)
        wanted = complete[-1] + moments.randint(0, 2)
        while len(list((store / "status").glob("c/*"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        complete.append(len(list((store / "status").glob("c/*"))))
    ended(start(store, devices=2))
    return complete[1:]


def test_a_killed_run_continues_and_ends_with_the_same_bits(tmp_path, whole):
    first, second = kill_at_random(tmp_path / "store", 2, seed=2)
    assert first < second < CHUNKS
    assert files(tmp_path / "store") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.slow
def test_a_run_that_is_killed_many_times_ends_with_the_same_bits(tmp_path, whole):
    kills = int(os.environ.get("LRP_JAX_KILLS", "20"))
    for k in range(0, kills, 4):
        kill_at_random(tmp_path / f"store{k}", min(4, kills - k), seed=k + 1)
        assert files(tmp_path / f"store{k}") == whole


def test_two_processes_with_two_devices_write_the_same_bits(tmp_path, whole):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(tmp_path / "store", coordinator, i, devices=2) for i in range(2)]
    for process in processes:
        ended(process)
    assert files(tmp_path / "store") == whole
