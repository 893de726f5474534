"""What the compiler says relevance costs on VGG-16, in gradients of the same network: exact, not timed."""

import jax
import jax.numpy as jnp
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import first, kind
from lrp_jax.models.vgg import VGG

pytestmark = pytest.mark.slow

COSTS = {  # operations, in input gradients; a forward pass is half a gradient
    "epsilon": (rules.Epsilon(), False, 1.01),
    "epsilon, with layers": (rules.Epsilon(), True, 1.01),
    "gamma on convolutions": ([(kind("conv"), rules.Gamma()), (kind("dense"), rules.Epsilon())], False, 1.52),
    "epsilon_gamma_box": (composites.epsilon_gamma_box(-2.0, 2.0), False, 1.52),
    "epsilon_plus_flat": (composites.epsilon_plus_flat(), False, 1.51),
    "overview_vgg16": (composites.overview_vgg16(-2.0, 2.0), False, 1.33),
    "alpha-beta": (rules.AlphaBeta(), False, 2.53),
}


@pytest.fixture(scope="module")
def network():
    """VGG-16 in float32 for one image of 224 x 224 pixels, as shapes."""
    network = VGG(classes=10, hidden=(256, 256))
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return network.apply, jax.eval_shape(network.init, jax.random.key(0), x), x


def flops(fn, *shapes):
    return jax.jit(fn).lower(*shapes).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def gradient(network):
    apply, params, x = network
    return flops(jax.grad(lambda x, params: apply(params, x).max(-1).sum()), x, params)


@pytest.mark.parametrize(("composite", "layers", "most"), COSTS.values(), ids=COSTS)
def test_operations(network, gradient, composite, layers, most):
    apply, params, x = network
    cost = flops(lrp_jax.lrp(apply, composite, layers=layers), params, x) / gradient
    assert 1 <= cost <= most


@pytest.mark.parametrize(("rule", "shared"), [(rules.Epsilon(), 1), (rules.Gamma(), 2)], ids=["epsilon", "gamma"])
def test_classes_share_all_that_does_not_depend_on_them(rule, shared):
    """T classes cost `shared` + T forward passes."""
    network = VGG(classes=10, hidden=(64, 64))
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    composite = [(kind("conv"), rule), (kind("dense"), rules.Epsilon()), (first(), rules.Epsilon())]
    explain = lrp_jax.lrp(network.apply, composite)
    forward = flops(network.apply, params, x)
    for count in (1, 8):
        target = jax.ShapeDtypeStruct((count, 1), jnp.int32)
        cost = flops(lambda params, x, target: explain(params, x, target=target), params, x, target)
        assert (shared + count) * 0.97 <= cost / forward <= (shared + count) * 1.03
