"""Saving and loading weights, and converting those of other libraries."""

import tracemalloc

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import write

from lrp_jax import weights
from lrp_jax.weights import FLAX, TORCH, TORCH_KERNELS, Layout, WeightsError

PARAMS = {
    "conv": {"kernel": np.ones((2, 3), np.float16), "bias": np.zeros(3, np.float32)},
    "steps": np.arange(3),
    "transposed": np.ones((2, 3)).T,
}


def test_saved_weights_are_loaded_unchanged(tmp_path):
    weights.save(tmp_path / "w.safetensors", PARAMS, {"licence": "none"})
    loaded = weights.load(tmp_path / "w.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)
    assert loaded["conv"]["kernel"].dtype == np.float32
    assert loaded["steps"].dtype == np.int64
    assert weights.load(tmp_path / "w.safetensors", np.float64)["conv"]["bias"].dtype == np.float64
    assert weights.about(tmp_path / "w.safetensors") == {"licence": "none"}


def test_errors_name_the_file_and_the_reason(tmp_path):
    def fails(reason):
        with pytest.raises(WeightsError, match=rf"w\.safetensors: {reason}"):
            weights.load(tmp_path / "w.safetensors")

    fails("no such file")
    (tmp_path / "w.safetensors").write_bytes(b"torch")
    fails("not a readable file of weights; expected safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"")
    fails("not a readable file of weights")
    weights.save(tmp_path / "w.safetensors", PARAMS)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    fails("not a readable safetensors file")
    weights.save(tmp_path / "w.safetensors", {"a": {"b": np.array([1.0, np.nan])}})
    fails("tensor 'a/b' has values that are not finite")


def test_load_converts_to_the_requested_dtype(tmp_path):
    exact = {"w": np.linspace(-3, 3, 7), "n": np.arange(3), "one": np.float32(2.5)}
    for dtype in ("float16", jnp.bfloat16, "float32"):
        weights.save(tmp_path / "w.safetensors", {**exact, "w": exact["w"].astype(dtype)})
        for wanted, expected in ((np.float32, np.float32), (np.float64, np.float64), (None, dtype)):
            loaded = weights.load(tmp_path / "w.safetensors", wanted)
            np.testing.assert_array_equal(loaded["w"], exact["w"].astype(dtype).astype(expected), strict=True)
            np.testing.assert_array_equal(loaded["n"], exact["n"], strict=True)
            assert loaded["one"] == 2.5
    weights.save(tmp_path / "w.safetensors", {"big": np.array([1e5], np.float32)})
    with pytest.raises(WeightsError, match="big has values too large for float16; load it with dtype float32"):
        weights.load(tmp_path / "w.safetensors", np.float16)


def test_a_failed_save_keeps_the_existing_file(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"partial")
        raise weights.SafetensorError("No space left on device")

    weights.save(tmp_path / "w.safetensors", PARAMS)
    before = (tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        weights.save(tmp_path / "w.safetensors", PARAMS)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert (tmp_path / "w.safetensors").read_bytes() == before


@pytest.mark.parametrize(("source", "wanted"), [(jnp.bfloat16, "float16"), ("f4", "bfloat16"), ("f8", "float32")])
def test_values_that_overflow_are_refused(source, wanted, tmp_path):
    large = {"float16": 1e5, "bfloat16": 3.4e38, "float32": 1e39}[wanted]
    weights.save(tmp_path / "w", {"a": {"b": np.array([1, large]).astype(source)}})
    with pytest.raises(WeightsError, match=f"a/b has values too large for {wanted}; load it with dtype"):
        weights.load(tmp_path / "w", wanted)


def test_a_name_cannot_be_both_tensor_and_layer(tmp_path):
    weights.save(tmp_path / "w", {"a": np.arange(3.0), "a/b": np.arange(3.0)})
    with pytest.raises(WeightsError, match="'a' is both a tensor and the parent of 'a/b'"):
        weights.load(tmp_path / "w")


SHAPES = {"conv/kernel": (3, 5, 2, 4), "norm/scale": (4,), "batch_stats/norm/mean": (4,), "fc/kernel": (12, 6)}
LAYOUT = Layout(
    {"conv": "c.0", "norm": "c.1", "fc": "head"}, TORCH, TORCH_KERNELS, {"fc": "o (c h w) -> (h w c) o"},
    {"h": 2, "w": 2}, ignored="c.1.count",
)  # fmt: skip
FILE_SHAPES = {"c.0.weight": (4, 2, 3, 5), "c.1.weight": (4,), "c.1.running_mean": (4,), "head.weight": (6, 12)}


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_tensors_of_other_libraries_are_renamed_and_transposed(tmp_path):
    tensors = random_tensors(FILE_SHAPES | {"c.1.count": (1,)})
    write(tmp_path / "w.pth", tensors)
    params = weights.load(tmp_path / "w.pth", np.float64, SHAPES, [LAYOUT])
    assert params["conv"]["kernel"][2, 4, 1, 3] == tensors["c.0.weight"][3, 1, 2, 4]
    np.testing.assert_array_equal(params["batch_stats"]["norm"]["mean"], tensors["c.1.running_mean"])
    for h, w, c, o in np.ndindex(2, 2, 3, 6):
        assert params["fc"]["kernel"][(h * 2 + w) * 3 + c, o] == tensors["head.weight"][o, (c * 2 + h) * 2 + w]
    for leaf in jax.tree.leaves(params):
        assert leaf.flags.writeable
        assert leaf.flags.c_contiguous
        assert leaf.ctypes.data % 64 == 0  # so that JAX can use it on a CPU without a copy
    weights.save(tmp_path / "own.safetensors", params)
    jax.tree.map(
        np.testing.assert_array_equal, weights.load(tmp_path / "own.safetensors", np.float64, SHAPES, [LAYOUT]), params
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": (6, 11)}, r"its tensor 'head.weight' has shape \(6, 11\), expected \(6, 12\)"),
        ({"head.weight": (12, 6)}, r"its tensor 'head.weight' has shape \(12, 6\), expected \(6, 12\)"),
        ({"c.0.weight": (4, 2, 3)}, r"'c.0.weight' has shape \(4, 2, 3\), expected \(4, 2, 3, 5\)"),
        ({"c.1.weight": None}, r"holds no tensor 'c.1.weight', expected with shape \(4,\)"),
        ({"c.3.weight": (4,)}, "its tensor 'c.3.weight' is unknown to this one"),
    ],
)
def test_errors_about_another_network_name_the_tensor_and_both_shapes(change, message, tmp_path):
    shapes = {name: shape for name, shape in (FILE_SHAPES | change).items() if shape is not None}
    write(tmp_path / "w.pth", random_tensors(shapes))
    with pytest.raises(WeightsError, match=rf"w\.pth: .*{message}"):
        weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT])


def test_errors_about_unknown_names_show_found_and_expected_names(tmp_path):
    write(tmp_path / "w.pth", {"blocks.0.weight": np.arange(3.0)})
    with pytest.raises(WeightsError, match=r"such as 'conv/kernel' or 'c.0.weight', found 'blocks.0.weight' \.\.\."):
        weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT])


def test_layers_can_be_left_out(tmp_path):
    for shapes in (FILE_SHAPES, {name: shape for name, shape in FILE_SHAPES.items() if name != "head.weight"}):
        write(tmp_path / "w.pth", random_tensors(shapes))
        params = weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT], without=["fc"])
        assert sorted(params) == ["batch_stats", "conv", "norm"]


@pytest.mark.parametrize("kind", ["zip", "pickles", "safetensors", "msgpack"])
def test_loading_needs_memory_for_one_copy_only(kind, tmp_path):
    shapes, path = {"fc/kernel": (12, 250_000), "conv/kernel": (3, 3, 100, 100)}, tmp_path / "w"
    tensors = random_tensors({"head.weight": (250_000, 12), "c.0.weight": (100, 100, 3, 3)})
    if kind == "safetensors":
        weights.save(path, tensors)
    elif kind == "msgpack":
        own = {name: {"kernel": np.ones(shapes[f"{name}/kernel"])} for name in ("fc", "conv")}
        path.write_bytes(flax.serialization.to_bytes(own))
    else:
        write(path, tensors, kind == "pickles")
    weights.load(path, np.float64, shapes, [LAYOUT])  # the first call imports modules, which need memory
    tracemalloc.start()
    try:
        weights.load(path, np.float64, shapes, [LAYOUT])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size


def test_default_names_are_those_of_flax():
    assert Layout().name("batch_stats/conv1_1_norm/var") == "batch_stats/conv1_1_norm/var"
    assert Layout({"a": "A_0"}).name("a/kernel") == FLAX["kernel"].format("A_0") == "A_0/kernel"
