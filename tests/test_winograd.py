"""Winograd convolutions: prepared 3x3 convolutions on CPUs give the same sums with fewer multiplications."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lrp_jax
from lrp_jax import rules
from lrp_jax.composites import kind
from lrp_jax.core import flatten
from lrp_jax.lowering import winograd

NHWC = ("NHWC", "HWIO", "NHWC")
PADDINGS = ("SAME", "VALID", ((0, 2), (3, 1)), ((2, 0), (0, 5)), ((-1, 2), (0, -2)))
LAYOUTS = {  # shapes of input and kernel: 2 images, 9 x 8 positions, 3 channels to 5
    NHWC: ((2, 9, 8, 3), (3, 3, 3, 5)),
    ("NCHW", "OIHW", "NCHW"): ((2, 3, 9, 8), (5, 3, 3, 3)),
    ("HWCN", "IOHW", "CNHW"): ((9, 8, 3, 2), (3, 5, 3, 3)),
}


def convolution(x, kernel, numbers=NHWC, padding="SAME", **options):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers, **options)


def operations_of(fn, *shapes, dtype=jnp.float32):
    """The names of the operations after convolutions are replaced."""
    _, ops, _, _ = flatten.operations(fn, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    return [op.name for op in winograd.with_fewer_multiplications(ops)]


def winograd_convolution(x, kernel, numbers=NHWC, padding="SAME"):
    (eqn,) = jax.make_jaxpr(lambda x, kernel: convolution(x, kernel, numbers, padding))(x, kernel).eqns
    filtering, convolved = winograd.halves(eqn.params)
    return np.asarray(convolved(x, *filtering(kernel)))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("numbers", LAYOUTS, ids=str)
def test_winograd_equals_the_convolution(numbers, padding):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape) for shape in LAYOUTS[numbers])
    expected = convolution(x, kernel, numbers, padding)
    found = winograd_convolution(x, kernel, numbers, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_outputs_of_zero_inputs_or_zero_weights_are_exactly_zero():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 17, 18, 6)).astype(np.float32), rng.normal(size=(3, 3, 6, 7)).astype(np.float32)
    x[0, 3:9] = x[1, :, 5:10] = x[2, 4:10, 3:12] = 0
    x[3, ..., 1:] = kernel[:, :, 0] = 0
    seen, found = convolution(np.abs(x), np.abs(kernel)), winograd_convolution(x, kernel)
    assert 0.3 < np.mean(seen == 0) < 0.6
    np.testing.assert_array_equal(found[seen == 0], 0)


def test_rounding_errors_are_at_most_twice_those_of_the_convolution():
    rng = np.random.default_rng(0)
    x, kernel = np.maximum(rng.normal(size=(1, 16, 16, 256)), 0), rng.normal(size=(3, 3, 256, 256)) / 48
    exact = convolution(x, kernel)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    found = convolution(x, kernel), winograd_convolution(x, kernel)
    errors = [np.sqrt(np.mean(np.square(np.float64(z) - exact))) for z in found]
    assert errors[1] < 2 * errors[0] < 2e-6


def test_only_wide_float32_convolutions_are_replaced():
    wide = ((1, 14, 14, 128), (3, 3, 128, 128))
    assert operations_of(convolution, *wide).count("dot_general") == 16
    for names in (
        operations_of(convolution, *wide, dtype=jnp.float64),
        operations_of(convolution, *wide, dtype=jnp.bfloat16),
        operations_of(convolution, (1, 14, 14, 64), (3, 3, 64, 128)),
        operations_of(convolution, (1, 8, 8, 128), (3, 3, 128, 128)),
        operations_of(convolution, (1, 14, 14, 128), (3, 5, 128, 128)),
        operations_of(lambda x, w: convolution(x, w, feature_group_count=2), (1, 14, 14, 256), (3, 3, 128, 256)),
        operations_of(lambda x, w: convolution(x, w, rhs_dilation=(2, 2)), *wide),
        operations_of(lambda x, w: convolution(x, w, padding=[(1, 1), (1, 1)], lhs_dilation=(2, 2)), *wide),
        operations_of(lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=NHWC), *wide),
        operations_of(lambda x, w: convolution(x, w, precision="highest"), *wide),
        operations_of(lambda x, w: convolution(x, w, precision=jax.lax.DotAlgorithmPreset.F32_F32_F32), *wide),
        operations_of(lambda x, w: convolution(x, w, preferred_element_type=jnp.float32), *wide, dtype=jnp.bfloat16),
        operations_of(lambda x, w: convolution(x, w, preferred_element_type=jnp.float32), *wide, dtype=jnp.int8),
    ):
        assert names == ["conv_general_dilated"]


@pytest.mark.parametrize("rule", [rules.Epsilon(), rules.ZPlus()], ids=str)
def test_prepared_relevance_is_the_same_and_takes_fewer_operations(rule):
    rng = np.random.default_rng(0)
    params = [(rng.normal(size=(3, 3, 128, 128)) / 24).astype(np.float32) for _ in range(2)]
    x = np.abs(rng.normal(size=(2, 12, 12, 128))).astype(np.float32)

    def fn(params, x):
        for kernel in params:
            x = jax.nn.relu(convolution(x, kernel))
        return x.mean((1, 2))

    explain = lrp_jax.lrp(fn, rule)
    expected, ready = explain(params, x), explain.prepare(params, x)
    np.testing.assert_allclose(ready(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def operations(ready):
        return jax.jit(lambda ready, x: ready(x)).lower(ready, x).compile().cost_analysis()["flops"]

    with jax.default_matmul_precision("highest"):
        exact = explain.prepare(params, x)
        assert operations(ready) < 0.6 * operations(exact)
    np.testing.assert_allclose(exact(x), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "rule",
    [
        rules.ZPlus(),
        rules.ZPlus(bias="ignore", eps=0.0),
        rules.AlphaBeta(eps=1e-9),
        rules.AlphaBeta(conserve=True),
        rules.Gamma(),
        rules.Epsilon(),
    ],
    ids=str,
)
def test_outputs_whose_positive_part_is_exactly_zero_give_no_relevance(rule):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 128, 128)) / 24
    x = np.zeros((1, 14, 14, 128))
    x[0, 6, 6:8, :3] = 10 * rng.random((2, 3))  # with few inputs, many outputs have weights of one sign
    explain = lrp_jax.lrp(lambda kernel, x: jax.nn.relu(convolution(x, kernel)).mean((1, 2)), rule)
    exact = explain(kernel, x)
    kernel, x = kernel.astype(np.float32), x.astype(np.float32)
    found = explain.prepare(kernel, x)(x)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    np.testing.assert_allclose(found.sum(), exact.sum(), rtol=1e-5)


def test_rules_that_need_exact_zeros_or_are_unknown_keep_the_convolution():
    class Own:
        def __call__(self, layer, a, params, R):
            return rules.Epsilon()(layer, a, params, R)

    x, kernel = np.ones((1, 14, 14, 128), np.float32), np.ones((3, 3, 128, 128), np.float32)
    fn = lambda kernel, x: jax.nn.relu(convolution(x, kernel)).mean((1, 2))
    cases = (Own(), False), (rules.AlphaBeta(), False), (rules.ZPlus(bias="ignore"), False), (rules.ZPlus(), True)
    for rule, replaced in cases:
        ready = lrp_jax.lrp(fn, [(kind("conv"), rule)]).prepare(kernel, x)
        assert ("dot_general" in str(jax.make_jaxpr(ready)(x))) == replaced


def test_batches_distributed_over_a_mesh():
    rng = np.random.default_rng(0)
    kernel = (rng.normal(size=(3, 3, 128, 128)) / 24).astype(np.float32)
    x = np.abs(rng.normal(size=(4, 12, 12, 128))).astype(np.float32)
    ready = lrp_jax.lrp(lambda kernel, x: convolution(x, kernel).mean((1, 2)), rules.Gamma()).prepare(kernel, x)
    distributed = NamedSharding(jax.make_mesh((4,), ("batch",)), PartitionSpec("batch"))
    R = ready(jax.device_put(x, distributed))
    assert len(R.sharding.device_set) == 4
    np.testing.assert_allclose(R, ready(x), rtol=0, atol=1e-6 * np.abs(R).max())
