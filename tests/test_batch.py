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
import jax.numpy as jnp
import numpy as np
import pytest
from batch_script import DAMAGED, INFINITE, ITEMS, Images, explain, network, parameters

import lrp_jax

zarr = pytest.importorskip("zarr")

from lrp_jax import batch  # noqa: E402
from lrp_jax.batch import program, reading  # noqa: E402

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


def readable():
    """The items that can be explained, and their numbers."""
    numbers = [i for i in range(ITEMS) if i not in (DAMAGED, INFINITE)]
    return np.stack([Images()[i] for i in numbers]), numbers


def test_results_are_those_of_single_items(tmp_path):
    explain(tmp_path / "store", Images())
    group, (x, numbers) = zarr.open_group(tmp_path / "store", mode="r"), readable()
    alone = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus(), logits=True, layers=True)
    for i, item in zip(numbers, x, strict=True):
        found = alone(parameters(), item[None])
        scale = np.abs(found.relevance).max()
        np.testing.assert_allclose(group["relevance"][i], found.relevance[0], atol=1e-6 * scale)
        np.testing.assert_allclose(group["layers/dense"][i], found.layers["dense"][0], atol=1e-6 * scale)
        np.testing.assert_allclose(group["logits"][i], found.logits[0], atol=1e-4)
        np.testing.assert_allclose(group["relevance_sum"][i], found.relevance.sum(), rtol=1e-4)
        assert group["prediction"][i] == group["target"][i] == int(found.logits.argmax())


def test_items_that_cannot_be_explained_are_recorded(tmp_path):
    summary = explain(tmp_path / "store", Images())
    assert not summary.complete
    assert "43 of 45 items explained; 1 unreadable; 1 with relevance that is not finite" in str(summary)
    store = batch.open_store(tmp_path / "store")
    assert [batch.STATUS[s] for s in store.status[[0, DAMAGED, INFINITE]]] == ["explained", "unreadable", "not_finite"]
    assert store.group["error"][DAMAGED] == "the file is damaged"
    assert np.isnan(store.group["relevance"][DAMAGED]).all()
    assert np.isnan(store.group["ledger"][DAMAGED]).all()
    assert store.group["target"][DAMAGED] == -1
    assert store.names[DAMAGED] == "image 7"


def test_xarray_opens_the_store_with_named_axes(tmp_path):
    xarray = pytest.importorskip("xarray")
    explain(tmp_path / "store", Images(), classes="abcde")
    with xarray.open_zarr(tmp_path / "store", consolidated=True) as found:
        assert found.relevance.dims == ("item", "y", "x", "channel")
        assert found.logits.sel({"class": "c"}).dims == ("item",)
        received = found.ledger.sel(ledger_row="dense", ledger_term="received")
        np.testing.assert_allclose(received[0], found.ledger_ends.sel(ledger_end="score")[0], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "loss"), [("float16", 5e-4), ("float32", 1e-6)])
def test_relevance_is_stored_with_less_precision_or_summed_over_channels(tmp_path, dtype, loss):
    explain(tmp_path / "full", readable()[0])
    full = batch.open_store(tmp_path / "full")
    for sums in (False, True):
        explain(tmp_path / f"{sums}", readable()[0], dtype=dtype, sum_channels=sums)
        less = batch.open_store(tmp_path / f"{sums}")
        assert less.group["relevance"].dtype == dtype
        expected = full.relevance().sum(-1) if sums else full.relevance()
        np.testing.assert_allclose(less.relevance(), expected, rtol=loss, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(less.relevance(3), expected[3], rtol=loss, atol=1e-6 * np.abs(expected[3]).max())
        layer = full.relevance(slice(2, 5), "dense")
        np.testing.assert_allclose(less.relevance(slice(2, 5), "dense"), layer, rtol=loss, atol=1e-6 * layer.max())


def test_relevance_that_is_too_small_or_too_large_for_float16_is_scaled(tmp_path):
    explainer, x = lrp_jax.lrp(lambda w, x: x @ w, lrp_jax.rules.Epsilon(0)), np.eye(3, 2, dtype=np.float32)
    x[0, 0], x[1, 1] = 1e-12, 1e12
    batch.explain_dataset(explainer, np.eye(2, dtype=np.float32), x, tmp_path / "store", dtype="float16")
    store = batch.open_store(tmp_path / "store")
    np.testing.assert_allclose(store.relevance(), x, rtol=5e-4)
    assert store.status.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dtype": "float16"}, "relevance dtype"),
        ({"target": 3}, "target"),
        ({"ledger": False}, "ledger"),
        ({"batch_size": 2, "chunk": None}, "batch size"),
        ({"chunk": 3}, "chunk"),
        ({"layers": ()}, "layers"),
        ({"settings": {"model": "another"}}, "model"),
    ],
)
def test_another_setting_is_refused(made, options, name):
    before = files(made)
    with pytest.raises(batch.BatchError, match=f"was made with {name} = .*, but this call has {name} = "):
        explain(made, Images(), **options)
    assert files(made) == before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete store."""
    folder = tmp_path_factory.mktemp("made") / "store"
    explain(folder, Images())
    return folder


def test_other_items_weights_and_functions_are_refused(made):
    others = Images()
    others.names = [f"photo {i}" for i in range(ITEMS)]
    with pytest.raises(batch.BatchError, match="with names "):
        explain(made, others)
    weights = parameters() | {"bias": np.ones((1, 1, 1, 4), np.float32)}
    explainer = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus())
    options = {"batch_size": 3, "chunk": 6, "ledger": True, "layers": ("dense",)}
    with pytest.raises(batch.BatchError, match="with weights "):
        batch.explain_dataset(explainer, weights, Images(), made, **options)
    with pytest.raises(batch.BatchError, match="with explainer "):
        batch.explain_dataset(lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus_flat()), parameters(), Images(),
                              made, **options)  # fmt: skip


def test_a_complete_store_is_not_written_again(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    summary = explain(made, Images())
    assert (summary.before, summary.seconds) == (ITEMS, 0.0)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    zarr.create_group(tmp_path / "other.zarr")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "other.zarr"):
        before = files(tmp_path)
        with pytest.raises(batch.BatchError, match="exists and is no store of lrp_jax; give another name"):
            explain(path, Images())
        assert files(tmp_path) == before
    with pytest.raises(batch.BatchError, match="is no store of lrp_jax"):
        batch.open_store(tmp_path)


def test_an_empty_folder_becomes_a_store(tmp_path):
    explain(tmp_path, Images())
    assert batch.is_store(tmp_path)


def test_a_full_disk_ends_the_run_with_one_sentence_and_the_next_run_continues(tmp_path, made, monkeypatch):
    write, chunks = zarr.Array.__setitem__, []

    def full(array, items, values):
        chunks.append(array.path)
        if chunks.count("logits") == 3:
            raise OSError(28, "No space left on device")
        write(array, items, values)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(batch.BatchError, match=r"No space left on device\); 2 of 8 chunks are complete. Start the"):
            explain(tmp_path / "store", Images())
    assert batch.open_store(tmp_path / "store").done().tolist() == [True] * 2 + [False] * 6
    assert explain(tmp_path / "store", Images()).before == 12
    assert files(tmp_path / "store") == files(made)


def test_the_status_of_a_chunk_is_written_last(tmp_path, monkeypatch):
    write, written = zarr.Array.__setitem__, []
    monkeypatch.setattr(zarr.Array, "__setitem__", lambda a, i, v: (written.append(a.path), write(a, i, v)))
    explain(tmp_path / "store", Images())
    columns = set(written) - {"name", "ledger_row", "ledger_term", "ledger_end"}
    written = [name for name in written if name in columns]
    assert len(written) == 8 * len(columns)
    assert written[len(columns) - 1 :: len(columns)] == ["status"] * 8


def test_a_device_with_too_little_memory_gets_smaller_batches(tmp_path, made, monkeypatch):
    call, said = program.Program.__call__, []

    def little_memory(self, x, target):  # simulated: CPUs do not raise this error
        if self.size > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return call(self, x, target)

    monkeypatch.setattr(program.Program, "__call__", little_memory)
    summary = explain(tmp_path / "store", Images(), say=said.append)
    assert said == ["a device has too little memory for 3 items at a time; continuing with 1."]
    assert (summary.batch_size, summary.explained) == (1, ITEMS - 2)
    found, expected = (zarr.open_group(path, mode="r") for path in (tmp_path / "store", made))
    assert set(found["batch_size"][:]) == {1}
    np.testing.assert_allclose(found["relevance"][:], expected["relevance"][:], rtol=1e-3, atol=1e-6)


def test_errors_of_devices_other_than_too_little_memory_are_raised(tmp_path, monkeypatch):
    def fail(self, x, target):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(program.Program, "__call__", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        explain(tmp_path / "store", Images())


def test_targets_are_one_for_all_or_one_for_each_item(tmp_path):
    x, _ = readable()
    targets = np.arange(len(x)) % 5
    explain(tmp_path / "each", x, target=targets)
    explain(tmp_path / "same", x, target=2)
    alone = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus())
    for name, target in (("each", targets), ("same", np.full(len(x), 2))):
        group = zarr.open_group(tmp_path / name, mode="r")
        np.testing.assert_array_equal(group["target"][:], target)
        expected = alone(parameters(), x, target=target)
        np.testing.assert_allclose(group["relevance"][:], expected, atol=1e-5 * np.abs(expected).max())
    for target in (5, -1, targets + 1):
        with pytest.raises(batch.BatchError, match="a target is out of range; expected 0 to 4"):
            explain(tmp_path / "wrong", x, target=target)
        assert not (tmp_path / "wrong").exists()
    with pytest.raises(batch.BatchError, match="expected one int, or 43 ints"):
        explain(tmp_path / "wrong", x, target=targets[:3])


def test_retry_explains_chunks_with_errors_again(tmp_path, made):
    damaged = Images()
    explain(tmp_path / "store", damaged)
    repaired = type("Repaired", (Images,), {"__getitem__": lambda self, i: np.full((6, 6, 2), i / 99, np.float32)})()
    assert explain(tmp_path / "store", repaired).before == ITEMS
    summary = explain(tmp_path / "store", repaired, retry=True)
    assert summary.complete
    assert summary.before == ITEMS - 12


def test_any_iterable_can_be_explained(tmp_path):
    x, _ = readable()
    explain(tmp_path / "array", x)
    explain(tmp_path / "drawn", (item for item in x), length=len(x))
    assert files(tmp_path / "array") == files(tmp_path / "drawn")
    with pytest.raises(batch.BatchError, match="the length of an iterable is not known"):
        explain(tmp_path / "unknown", (item for item in x))
    with pytest.raises(batch.BatchError, match="workers must be 0"):
        explain(tmp_path / "unknown", (item for item in x), length=len(x), workers=1)
    summary = explain(tmp_path / "short", (item for item in x), length=len(x) + 2)
    assert summary.unreadable == 2


def test_explainers_with_remat_are_not_prepared(tmp_path, made):
    explainer = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus(), remat=True)
    batch.explain_dataset(explainer, parameters(), Images(), tmp_path / "store", batch_size=3)
    found, expected = (batch.open_store(path).relevance()[readable()[1]] for path in (tmp_path / "store", made))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_items_can_be_explained_in_another_dtype(tmp_path):
    x, _ = readable()
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), parameters())
    explainer = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus(), logits=True)
    options = {"batch_size": len(x), "compute": "bfloat16", "ledger": True}
    batch.explain_dataset(explainer, weights, x, tmp_path / "store", **options)
    store, expected = batch.open_store(tmp_path / "store"), explainer(weights, jnp.asarray(x, jnp.bfloat16))
    assert store.group["relevance"].dtype == store.group["logits"].dtype == "float32"
    R = np.asarray(expected.relevance, np.float32)
    np.testing.assert_allclose(store.relevance(), R, atol=0.05 * np.abs(R).max())


def test_items_of_another_shape_are_recorded(tmp_path):
    x, _ = readable()
    summary = explain(tmp_path / "store", [*x[:5], x[5][:3]])
    assert summary.unreadable == 1
    assert "the shape is (3, 6, 2), but that of the first item is (6, 6, 2)" in batch.open_store(
        tmp_path / "store").group["error"][5].item()  # fmt: skip


def test_the_batch_size_is_measured_once(tmp_path):
    x = readable()[0][:8]
    sizes = [explain(tmp_path / "store", x, batch_size="auto", chunk=None).batch_size for _ in range(2)]
    assert sizes[0] == sizes[1] >= 1


def test_sharded_parameters_stay_sharded(tmp_path):
    x, _ = readable()
    mesh = jax.make_mesh((2, 2), ("batch", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    axes = {"conv": jax.P(None, None, None, "model"), "bias": jax.P(None, None, None, "model"), "dense": jax.P()}
    sharded = {name: jax.device_put(w, jax.NamedSharding(mesh, axes[name])) for name, w in parameters().items()}
    explainer = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus())
    made = program.Program(
        explainer, sharded, jax.ShapeDtypeStruct((6, 6, 2), np.float32), 3, program.Wanted(ledger=True)
    )
    assert made.devices == 2
    assert made.known[1]["conv"].sharding.spec[-1] == "model"
    batch.explain_dataset(explainer, sharded, x, tmp_path / "store", batch_size=3)
    expected = explainer(parameters(), x)
    found = zarr.open_group(tmp_path / "store", mode="r")["relevance"][:]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    other = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    wrong = jax.device_put(parameters(), jax.NamedSharding(other, jax.P()))
    with pytest.raises(batch.BatchError, match="an axis named 'batch'"):
        batch.explain_dataset(explainer, wrong, x, tmp_path / "wrong")


def test_the_report_is_the_ledger_of_all_items(tmp_path):
    x, _ = readable()
    explain(tmp_path / "store", x, target=1)
    store = batch.open_store(tmp_path / "store")
    found, totals = batch.ledger(store), batch.totals(store)
    expected = lrp_jax.conservation(network, lrp_jax.composites.epsilon_plus())(parameters(), x, target=1)
    assert [(r.name, r.kind, r.rule) for r in found.rows] == [(r.name, r.kind, r.rule) for r in expected.rows]
    for row, other in zip(found.rows, expected.rows, strict=True):
        np.testing.assert_allclose(row.received, other.received, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(row.lost, other.lost, rtol=1e-3, atol=1e-3)
    assert totals.balanced
    shares = expected.relevance / expected.score
    np.testing.assert_allclose(totals.reached.quantiles, np.quantile(shares, (0.05, 0.5, 0.95)), rtol=1e-3)
    assert [name for name, _ in totals.least_reached] == [str(i) for i in np.argsort(shares)[:10]]
    dense = next(layer for layer in totals.layers if layer.name == "dense")
    assert dense.received.mean == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("dens",)}, "no layer 'dens'; the layers are .*Did you mean 'dense'"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected float32 or float16"),
        ({"chunk": 4}, "chunk is 4; expected a multiple of the batch size, 3"),
        ({"names": ["a"]}, "1 names for 43 items"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(batch.BatchError, match=message):
        explain(tmp_path / "store", readable()[0], **options)
    assert not (tmp_path / "store").exists()


def test_items_that_are_no_arrays_of_numbers_are_refused(tmp_path):
    with pytest.raises(batch.BatchError, match="dtype uint8; expected floating-point"):
        explain(tmp_path / "store", np.zeros((4, 6, 6, 2), np.uint8))
    with pytest.raises(batch.BatchError, match="there are no items"):
        explain(tmp_path / "store", np.zeros((0, 6, 6, 2)))
    with pytest.raises(batch.BatchError, match="none of the first 2 items can be read; the first reason: nothing"):
        explain(tmp_path / "store", Broken())
    with pytest.raises(batch.BatchError, match="expected an explainer"):
        batch.explain_dataset(network, parameters(), readable()[0], tmp_path / "store")


class Broken:
    names = ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, i):
        raise ValueError("nothing")


def test_functions_without_one_row_of_logits_for_each_item_are_refused(tmp_path):
    explainer = lrp_jax.lrp(lambda w, x: jnp.sum(x * w[None], (0, 3)), lrp_jax.rules.Epsilon())
    with pytest.raises(batch.BatchError, match="expected one row of logits for each item"):
        batch.explain_dataset(explainer, np.ones((6, 6, 2), np.float32), readable()[0], tmp_path / "store")


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    command = r".*: pip install 'lrp_jax\[batch\]'"
    (tmp_path / "r.array_record").touch()
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    with pytest.raises(batch.BatchError, match=f"ArrayRecord needs the package array_record{command}"):
        batch.open_input(tmp_path / "r.array_record", None)
    monkeypatch.setattr(reading, "has_grain", lambda: False)
    with pytest.raises(batch.BatchError, match=f"worker processes need the package grain{command}"):
        explain(tmp_path / "store", Images(), workers=1)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(batch.BatchError, match=f"batch needs the package zarr{command}"):
        explain(tmp_path / "other", Images())


@pytest.mark.slow
def test_worker_processes_read_the_same_items_in_the_same_order(tmp_path, made):
    pytest.importorskip("grain")
    explain(tmp_path / "store", Images(), workers=2)
    assert files(tmp_path / "store") == files(made)


def test_the_device_waits_if_reading_is_slow(tmp_path):
    assert explain(tmp_path / "store", Images(0.01)).waiting > 0.3


@pytest.mark.parametrize("progress", [True, None, False])
def test_progress_is_shown_if_asked_for(tmp_path, capsys, progress):
    explain(tmp_path / "store", readable()[0][:9], progress=progress)
    out, err = capsys.readouterr()
    shown = "9/9" in err and ("item/s" in err or "s/item" in err) and "device waits" in err
    assert (out, shown) == ("", progress is True)
    assert err == "" or progress


def test_importing_the_package_imports_neither_zarr_nor_grain():
    code = "import sys, lrp_jax.batch; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"zarr", "grain", "array_record", "xarray", "matplotlib", "tqdm"} & set(found)
