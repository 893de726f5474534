"""Operations and memory of relevance as counted by the compiler, relative to the input gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import first, kind
from lrp_jax.models.vgg import VGG

COSTS = {  # upper bounds of operations and memory, relative to the input gradient (two forward passes)
    "epsilon": (rules.Epsilon(), False, 1.01, 1.2),
    "epsilon, with layers": (rules.Epsilon(), True, 1.01, 1.2),
    "gamma on convolutions": ([(kind("conv"), rules.Gamma()), (kind("dense"), rules.Epsilon())], False, 1.52, 1.2),
    "epsilon_gamma_box": (composites.epsilon_gamma_box(-2.0, 2.0), False, 1.52, 1.2),
    "epsilon_plus_flat": (composites.epsilon_plus_flat(), False, 1.51, 1.2),
    "overview_vgg16": (composites.overview_vgg16(-2.0, 2.0), False, 1.33, 1.2),
    "alpha-beta": (rules.AlphaBeta(), False, 2.53, 2.0),  # two more copies of the weights, which dominate for one image
}


@pytest.fixture(scope="module")
def network():
    """VGG-16 in float32 for one image of 224 x 224 pixels, as shapes."""
    network = VGG(classes=10, hidden=(256, 256))
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return network.apply, jax.eval_shape(network.init, jax.random.key(0), x), x


def costs(fn, *shapes, **options):
    """Operations, and bytes except those of arguments and results."""
    compiled = jax.jit(fn).lower(*shapes).compile(compiler_options=options)
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def of_gradient(network, **options):
    apply, params, x = network
    return costs(jax.grad(lambda x, params: apply(params, x).max(-1).sum()), x, params, **options)


@pytest.fixture(scope="module")
def gradient(network):
    return of_gradient(network)


@pytest.mark.slow
@pytest.mark.parametrize(("composite", "layers", "most", "memory"), COSTS.values(), ids=COSTS)
def test_operations_and_memory_have_bounds(network, gradient, composite, layers, most, memory):
    apply, params, x = network
    operations, temporary = costs(lrp_jax.lrp(apply, composite, layers=layers), params, x)
    assert 1 <= operations / gradient[0] <= most
    assert temporary / gradient[1] <= memory


@pytest.mark.slow
def test_memory_with_the_memory_optimized_scheduler(network, gradient):
    """By default XLA for CPUs uses more memory to run operations at the same time."""
    apply, params, x = network
    sparing = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    _, least = of_gradient(network, **sparing)
    assert least < 0.6 * gradient[1]
    for composite in (rules.AlphaBeta(), composites.epsilon_gamma_box(-2.0, 2.0)):
        assert costs(lrp_jax.lrp(apply, composite), params, x, **sparing)[1] <= 1.2 * least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [("epsilon", 0.58), ("epsilon_gamma_box", 0.86), ("epsilon_plus_flat", 0.851), ("alpha-beta", 2.52)],
)
def test_prepared_relevance_takes_fewer_operations(network, gradient, name, most):
    apply, params, x = network
    ready = jax.eval_shape(lrp_jax.lrp(apply, COSTS[name][0]).prepare, params, x)
    operations, temporary = costs(lambda ready, x: ready(x), ready, x)
    assert operations / gradient[0] <= most
    assert temporary / gradient[1] <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "shared"), [(rules.Epsilon(), 1), (rules.Gamma(), 2)], ids=["epsilon", "gamma"])
def test_several_targets_share_the_forward_pass(rule, shared):
    """T targets cost `shared` + T forward passes."""
    network = VGG(classes=10, hidden=(64, 64))
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    composite = [(kind("conv"), rule), (kind("dense"), rules.Epsilon()), (first(), rules.Epsilon())]
    explain = lrp_jax.lrp(network.apply, composite)
    forward, _ = costs(network.apply, params, x)
    for count in (1, 8):
        target = jax.ShapeDtypeStruct((count, 1), jnp.int32)
        cost, _ = costs(lambda params, x, target: explain(params, x, target=target), params, x, target)
        assert (shared + count) * 0.97 <= cost / forward <= (shared + count) * 1.03


@pytest.mark.parametrize("rule", [rules.Epsilon(), pytest.param(rules.AlphaBeta(), marks=pytest.mark.slow)], ids=str)
def test_remat_needs_more_operations_and_less_memory(rule):
    kernels = jax.random.normal(jax.random.key(0), (12, 3, 3, 8, 8)) / 8
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 8))

    def fn(kernels, x):
        for w in kernels:
            z = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x + jax.nn.relu(z)
        return x.mean((1, 2))

    explain, lean = (lrp_jax.lrp(fn, rule, remat=remat) for remat in (False, True))
    np.testing.assert_allclose(lean(kernels, x), explain(kernels, x), rtol=1e-10, atol=1e-14)
    (operations, memory), (more, less) = (costs(f, kernels, x) for f in (explain, lean))
    assert more <= 1.5 * operations
    assert less < 0.5 * memory
    several = np.arange(8)[:, None]
    for_all, more_for_all = (costs(lambda k, x, f=f: f(k, x, target=several), kernels, x)[0] for f in (explain, lean))
    assert more_for_all - for_all <= 1.1 * (more - operations)  # the targets share the second forward pass
    expected, slopes = (jax.grad(lambda x, f=f: (f(kernels, x) ** 2).sum())(x) for f in (explain, lean))
    np.testing.assert_allclose(slopes, expected, rtol=1e-8, atol=1e-10 * jnp.abs(expected).max())
