"""Other methods, to compare with LRP. They are called like `lrp`: `method(fn)(params, x, target=3)`.

A method takes a function `fn(*args) -> logits (..., K)`. It returns `explain(*args, target=None)`, compiled on its
first call for each set of shapes. `target` is as for `lrp`: an int, an int for each example, or None for the highest
logit of each; with an additional axis in front, several classes are explained at once. `argnums` is the explained
argument (default: the last), and `select` the part of the result that is the logits, as for `lrp`. The result has the
shape of the explained argument, unless a method states another shape. In the formulas, y is the logit of the target as
a function of the explained argument x.
"""

from lrp_jax.methods.activation_maps import cam, grad_cam
from lrp_jax.methods.backward import deconvnet, deep_taylor, guided_backprop
from lrp_jax.methods.gradients import (
    absolute_gradient,
    gradient,
    gradient_times_input,
    integrated_gradients,
    smooth_grad,
    taylor,
)
from lrp_jax.methods.occlusion import occlusion

__all__ = [
    "absolute_gradient",
    "cam",
    "deconvnet",
    "deep_taylor",
    "grad_cam",
    "gradient",
    "gradient_times_input",
    "guided_backprop",
    "integrated_gradients",
    "occlusion",
    "smooth_grad",
    "taylor",
]
