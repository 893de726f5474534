"""What the compiler says relevance costs on VGG-16, in gradients of the same network: exact, not timed."""

import jax
import jax.numpy as jnp
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind
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
