"""The rules: one formula for each, all built on `redistribute`.

Every rule has the signature `rule(a, M, b, reach, R) -> R_in`:

    a      inputs of the layer (n, j)
    M      matrix of the layer (j, k); its entries are the weights w_jk of the formulas
    b      bias (k,)
    reach  1 if input j is a term of output k, else 0 (j, k)
    R      relevance of the outputs (n, k)
    R_in   relevance of the inputs (n, j)

Options of the rules:

    eps    a number, or a `Stabilizer`
    bias   how the rule treats the bias b.
           absorb  z_k contains the bias; the bias absorbs its share of the relevance
           ignore  z_k does not contain the bias
           keep    as absorb, but a rule that modifies the weights does not modify the bias
           share   as absorb, but the inputs of output k receive in equal parts what bias and stabilizer absorb
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .layers import inputs_of_outputs, minus, plus

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""The type of rules: `rule(a, M, b, reach, R) -> R_in`."""


@dataclass(frozen=True)
class Stabilizer:
    """st(z): keeps denominators away from zero. sign(0) = 1.

    Attributes:
        eps: the size of the stabilizer. With `norm`, it is multiplied by the root mean square of z.
        mode: signed: z + eps sign(z). unsigned: z + eps. clip: sign(z) max(|z|, eps). at_zero: eps if z = 0, else z.
        norm: None; sample: root mean square over all outputs of an example; tensor: over the outputs of all examples.
    """

    eps: float = 1e-6
    mode: str = "signed"
    norm: str | None = None

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """The stabilized z (n, k)."""
        axis = {None: (), "sample": 1, "tensor": None}[self.norm]
        scale = 1.0 if self.norm is None else np.sqrt((z**2).mean(axis, keepdims=True))
        eps, sign = self.eps * scale, np.where(z < 0, -1, 1)
        return {
            "signed": z + eps * sign,
            "unsigned": z + eps,
            "clip": sign * np.maximum(np.abs(z), eps),
            "at_zero": np.where(z == 0, eps, z),
        }[self.mode]


Eps = float | Stabilizer
"""A stabilizer. A number eps is short for `Stabilizer(eps)`."""


def divide(x, y):
    """Quotient x / y, and 0 if y is 0."""
    return np.where(y == 0, 0, x / np.where(y == 0, 1, y))


def _bias_of_sum(b, bias, modified):
    """The bias in z_k: `modified` as the rule modifies the weights (absorb, share), b (keep), or 0 (ignore)."""
    return {"absorb": modified, "share": modified, "keep": b, "ignore": 0 * b}[bias]


def redistribute(c: np.ndarray, b: np.ndarray, reach: np.ndarray, R: np.ndarray, eps: Eps, bias: str) -> np.ndarray:
    """R_j = sum_k c_jk R_k / st(z_k) with z_k = sum_j c_jk + b_k: the common form of the rules of linear layers.

    Bias and stabilizer absorb R_k (st(z_k) - sum_j c_jk) / st(z_k) of output k. With bias = share, the inputs that
    reach k receive this amount in equal parts. If st(z_k) = 0, the relevance of k is dropped.

    Args:
        c: contribution of input j to output k, (n, j, k), or (j, k) for all examples.
        b: bias in z_k, after the option `bias` (k,).
        reach: 1 if input j is a term of output k, else 0 (j, k).
        R: relevance of the outputs (n, k).
        eps: the stabilizer st.
        bias: absorb, ignore, keep or share. Only share changes the result, as `b` already follows the option.

    Returns:
        Relevance of the inputs (n, j).

    Source: Montavon et al. 2019, section 10.2. The option share: Arras et al. 2017, "Explaining Recurrent Neural
    Network Predictions in Sentiment Analysis".
    """
    c = np.broadcast_to(c, (len(R), *reach.shape))
    stabilize = eps if isinstance(eps, Stabilizer) else Stabilizer(eps)
    z = c.sum(1) + b  # z_k = sum_j c_jk + b_k
    stable = stabilize(z)
    s = divide(R, stable)  # s_k = R_k / st(z_k)
    R_in = (c * s[:, None, :]).sum(2)  # R_j = sum_k c_jk s_k
    if bias == "share":
        absorbed = s * (stable - c.sum(1))
        R_in += absorbed @ divide(reach, reach.sum(0)).T
    return R_in


def epsilon(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """LRP-epsilon: c_jk = a_j w_jk (Bach et al. 2015, eq. 58)."""
    return redistribute(a[:, :, None] * M, _bias_of_sum(b, bias, b), reach, R, eps, bias)


zero = partial(epsilon, eps=0.0)
"""LRP-0: LRP-epsilon with eps = 0 (Bach et al. 2015, eq. 56)."""

norm = zero
"""LRP-0 for average pools and additions: each input receives its share of the sum."""


def gamma_simple(a, M, b, reach, R, gamma=0.25, eps: Eps = 1e-6, bias="absorb"):
    """LRP-gamma: c_jk = a_j (w + gamma w+)_jk, bias b + gamma b+ (Montavon et al. 2019, section 10.2.1)."""
    return redistribute(
        a[:, :, None] * (M + gamma * plus(M)), _bias_of_sum(b, bias, b + gamma * plus(b)), reach, R, eps, bias
    )


def gamma_generalized(a, M, b, reach, R, gamma=0.25, eps: Eps = 1e-6, bias="absorb"):
    """LRP-gamma for inputs of any sign (Andeol et al. 2021).

    The sign of z_k = sum_j a_j w_jk + b_k, always with the bias, selects the formula:

    z_k > 0: c_jk = a_j+ (w + gamma w+)_jk + a_j- (w + gamma w-)_jk, bias b + gamma b+.
    z_k < 0: c_jk = a_j+ (w + gamma w-)_jk + a_j- (w + gamma w+)_jk, bias b + gamma b-.
    z_k = 0: the relevance of k is dropped.
    """
    z = a @ M + b
    up, down = M + gamma * plus(M), M + gamma * minus(M)
    a_plus, a_minus = plus(a)[:, :, None], minus(a)[:, :, None]
    b_above, b_below = _bias_of_sum(b, bias, b + gamma * plus(b)), _bias_of_sum(b, bias, b + gamma * minus(b))
    above = redistribute(a_plus * up + a_minus * down, b_above, reach, np.where(z > 0, R, 0), eps, bias)
    below = redistribute(a_plus * down + a_minus * up, b_below, reach, np.where(z < 0, R, 0), eps, bias)
    return above + below


def alpha_beta(a, M, b, reach, R, alpha=2.0, beta=1.0, eps: Eps = 1e-6, bias="absorb", conserve=False):
    """LRP-alpha-beta: R_j = alpha R_j(+) - beta R_j(-) (Bach et al. 2015, eq. 60).

    R_j(+) is the relevance for the positive side: c_jk = (a_j w_jk)+, bias b+.
    R_j(-) is the relevance for the negative side: c_jk = (a_j w_jk)-, bias b-.

    With `conserve`, an output k whose sum z_k = sum_j c_jk + b_k is exactly 0 on one side passes all its relevance R_k
    to the other side. If both sums are 0, R_k goes to the positive side, whose denominator is st(0). R_k is then lost,
    unless eps > 0 and bias = share.
    """
    c = a[:, :, None] * M
    c_plus, c_minus = plus(c), minus(c)
    b_plus, b_minus = _bias_of_sum(b, bias, plus(b)), _bias_of_sum(b, bias, minus(b))
    to_plus, to_minus = alpha * R, -beta * R
    if conserve:
        no_plus, no_minus = c_plus.sum(1) + b_plus == 0, c_minus.sum(1) + b_minus == 0
        to_plus = np.where(no_minus, R, np.where(no_plus, 0, to_plus))
        to_minus = np.where(no_minus, 0, np.where(no_plus, R, to_minus))
    positive = redistribute(c_plus, b_plus, reach, to_plus, eps, bias)
    return positive + redistribute(c_minus, b_minus, reach, to_minus, eps, bias)


zplus = partial(alpha_beta, alpha=1.0, beta=0.0)
"""The z+ rule: only positive contributions, c_jk = (a_j w_jk)+ (Montavon et al. 2017, section 4)."""


def zbox(a, M, b, reach, R, low: Any = 0.0, high: Any = 1.0, eps: Eps = 1e-6, bias="absorb"):
    """The z^B rule: c_jk = a_j w_jk - l_j w+_jk - h_j w-_jk, no bias (Montavon et al. 2017, section 4).

    The bounds `low` (l) and `high` (h) are one number, one number for each channel, or one for each input.
    """
    # the index of the channel varies fastest, so repeating the bounds gives one for each input
    low, high = (np.resize(bound, (a.shape[1], 1)) for bound in (low, high))
    return redistribute(a[:, :, None] * M - low * plus(M) - high * minus(M), 0 * b, reach, R, eps, bias)


def flat(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """The flat rule: c_jk = 1 if j reaches k, else 0; no bias (Lapuschkin et al. 2019, methods)."""
    return redistribute(reach, 0 * b, reach, R, eps, bias)


def wsquare(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """The w^2 rule: c_jk = w_jk^2, bias b^2 (Montavon et al. 2017, section 4)."""
    return redistribute(M**2, _bias_of_sum(b, bias, b**2), reach, R, eps, bias)


def unchanged(a, M, b, reach, R):
    """R_in = R, for activations and reshapes: each output passes its relevance to the input at the same position."""
    return R


def winner_takes_all(a, M, b, reach, R):
    """R_j = sum of R_k over the windows k with maximum a_j, for max-pools.

    If several inputs of a window are equal to its maximum, one of them receives all relevance.
    """
    winner = inputs_of_outputs(a, reach).argmax(1)  # (n, k)
    won = np.arange(a.shape[1])[None, :, None] == winner[:, None, :]
    return (won * R[:, None, :]).sum(2)


def derivative(a, M, b, reach, R):
    """sum_k w_jk R_k, the chain rule of a linear layer: LRP with this rule computes a gradient."""
    return R @ M.T


def derivative_of_relu(a, M, b, reach, R):
    """R_j if a_j > 0, else 0: the chain rule of a ReLU."""
    return np.where(a > 0, R, 0)
