"""The judge: LRP once more, in NumPy and float64 alone, written to be read, not to be fast.

Every layer tells its sums `z_k = sum_j a_j M_jk + b_k` as a matrix M (inputs, outputs), for an example laid flat; every
rule is then one formula. An example of two inputs, two hidden units and one output:

    network = (Dense(w1, b1), Relu(), Dense(w2, b2))
    logits = forward(network, x)[-1]
    R = explain(network, x, (zplus, unchanged, epsilon), logit(logits, 0))[0]

Indices in formulas: j an input, k an output; (.)+ = max(., 0), (.)- = min(., 0). Arrays begin with the batch axis, n.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`rule(a, M, b, reach, R) -> R_in`: a (n, j), M and reach (j, k), b (k), R (n, k), R_in (n, j)."""


# Layers
class Sums(NamedTuple):
    """The sums z_k = sum_j a_j M_jk + b_k of a layer; reach_jk is 1 where input j takes part in sum k, else 0."""

    M: np.ndarray
    b: np.ndarray
    reach: np.ndarray
    shape: tuple[int, ...]


class Layer:
    """What all layers share: the sums they take over inputs of a given shape, and their forward pass."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        """The sums over one example; where a layer takes none, each input is an output."""
        eye = np.eye(int(np.prod(shape)))
        return Sums(eye, np.zeros(len(eye)), eye, shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        M, b, _, shape = self.sums(x.shape[1:])
        return (_flat(x) @ M + b).reshape(len(x), *shape)


@dataclass(frozen=True)
class Dense(Layer):
    """z_k = sum_j a_j w_jk + b_k, with w (in, out)."""

    w: np.ndarray
    b: np.ndarray | None = None

    def sums(self, shape: tuple[int, ...]) -> Sums:
        del shape
        M = np.asarray(self.w, np.float64)
        return Sums(M, _bias(self.b, M.shape[1:]), np.ones(M.shape), M.shape[1:])


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution over any number of axes: z[o, d] = sum_{i, k, c} a[i, c] w[k, c, d] + b[d].

    Input position i meets kernel position k in the sum for output position o where, along every axis,
    `i input_dilation + low padding = o stride + k dilation`.

    Attributes:
        w, b: kernel (*kernel, in / groups, out) and bias (out).
        strides, dilation, input_dilation: numbers, or one for each axis; input_dilation > 1 makes it transposed.
        padding: SAME, VALID, or pairs (low, high) for each axis; SAME is for input_dilation = 1.
        groups: output channels see the input channels of their own group only.
    """

    w: np.ndarray
    b: np.ndarray | None = None
    strides: int | Sequence[int] = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dilation: int | Sequence[int] = 1
    input_dilation: int | Sequence[int] = 1
    groups: int = 1

    def sums(self, shape: tuple[int, ...]) -> Sums:
        *size, channels = shape
        *kernel, seen, width = self.w.shape
        full, inside = np.zeros((*kernel, channels, width)), np.zeros((channels, width))
        for d in range(width):
            start = d * self.groups // width * seen
            full[..., start : start + seen, d] = self.w[..., d]
            inside[start : start + seen, d] = 1
        paddings = [self.padding] * len(size) if isinstance(self.padding, str) else self.padding
        steps = (np.broadcast_to(s, len(size)) for s in (self.strides, self.dilation, self.input_dilation))
        axes = list(itertools.starmap(_meetings, zip(size, kernel, paddings, *steps, strict=True)))
        out = tuple(count for _, count in axes)
        M = np.zeros((*size, channels, *out, width))
        reach = np.zeros_like(M)
        for meeting in itertools.product(*(triples for triples, _ in axes)):
            i, k, o = zip(*meeting, strict=True)
            M[(*i, slice(None), *o)] = full[k]
            reach[(*i, slice(None), *o)] = inside
        b = _bias(self.b, (*out, width))
        return Sums(M.reshape(-1, b.size), b, reach.reshape(-1, b.size), (*out, width))


def _meetings(inputs, kernel, padding, stride, dilation, input_dilation):
    """Along one axis: all (i, k, o) where input i meets kernel position k for output o, and the number of outputs."""
    input_span, kernel_span = (inputs - 1) * input_dilation + 1, (kernel - 1) * dilation + 1
    if padding == "SAME":  # as many outputs as strides fit; an odd pad is larger at the end
        total = max((-(-inputs // stride) - 1) * stride + kernel_span - inputs, 0)
        padding = total // 2, total - total // 2
    low, high = (0, 0) if padding == "VALID" else padding
    outputs = (input_span + low + high - kernel_span) // stride + 1
    everything = itertools.product(range(inputs), range(kernel), range(outputs))
    return [(i, k, o) for i, k, o in everything if i * input_dilation + low == o * stride + k * dilation], outputs


@dataclass(frozen=True)
class AvgPool(Layer):
    """The mean over windows, each channel for itself, without padding."""

    window: tuple[int, ...]
    strides: tuple[int, ...]

    def sums(self, shape: tuple[int, ...]) -> Sums:
        weights = np.full((*self.window, 1, shape[-1]), 1 / np.prod(self.window))
        return Conv(weights, strides=self.strides, padding="VALID", groups=shape[-1]).sums(shape)


@dataclass(frozen=True)
class MaxPool(AvgPool):
    """The maximum over windows; its sums are those of the average pool of the same windows."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        _, _, reach, shape = self.sums(x.shape[1:])
        return _within(_flat(x), reach).max(1).reshape(len(x), *shape)


@dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """The mean of each channel over all positions."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        return AvgPool(shape[:-1], shape[:-1]).sums(shape)._replace(shape=shape[-1:])


@dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return _plus(x)


@dataclass(frozen=True)
class Flatten(Layer):
    """An example laid flat, channels running fastest."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        return super().sums((int(np.prod(shape)),))


@dataclass(frozen=True)
class Residual(Layer):
    """x + branch(x); its sums are those of the addition, over the two summands one after the other."""

    branch: tuple[Layer, ...]

    def sums(self, shape: tuple[int, ...]) -> Sums:
        one = super().sums(shape)
        both = np.vstack([one.M, one.M])
        return Sums(both, one.b, both, shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + forward(self.branch, x)[-1]


def _bias(b, shape):
    return np.broadcast_to(np.asarray(0 if b is None else b, np.float64), shape).ravel()


def _flat(x):
    return x.reshape(len(x), -1)


def _plus(x):
    return np.maximum(x, 0)


def _minus(x):
    return np.minimum(x, 0)


def _within(a, reach):
    """a_j where input j reaches output k, else minus infinity (n, j, k)."""
    return np.where(reach == 1, a[:, :, None], -np.inf)


# What every rule is made of
@dataclass(frozen=True)
class Stabilizer:
    """Keeps denominators away from zero; sign(0) = 1.

    Attributes:
        eps: the distance kept; with `norm`, a multiple of the root mean square of z.
        mode: signed z + eps sign(z); unsigned z + eps; clip sign(z) max(|z|, eps); at_zero z + eps where z = 0.
        norm: None; sample, the root mean square over all outputs of an example; tensor, over those of all examples.
    """

    eps: float = 1e-6
    mode: str = "signed"
    norm: str | None = None

    def __call__(self, z: np.ndarray) -> np.ndarray:
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
"""A number stands for the signed stabilizer of that size."""


def _divide(x, y):
    """The quotient x / y, and 0 where y is 0."""
    return np.where(y == 0, 0, x / np.where(y == 0, 1, y))


def _seen(b, bias, treated):
    """The bias in the denominator: `treated` as the rule treats weights (absorb, share), b (keep), or 0 (ignore)."""
    return {"absorb": treated, "share": treated, "keep": b, "ignore": 0 * b}[bias]


def redistribute(c: np.ndarray, b: np.ndarray, reach: np.ndarray, R: np.ndarray, eps: Eps, bias: str) -> np.ndarray:
    """R_j = sum_k c_jk R_k / st(z_k) with z_k = sum_j c_jk + b_k: what all rules of linear layers come down to.

    Bias and stabilizer take R_k (st(z_k) - sum_j c_jk) / st(z_k) of output k; with bias = share, the inputs that reach
    k get that back in equal parts. Where st(z_k) = 0, the relevance of k is dropped.

    Args:
        c: contribution of input j to output k (n, j, k), or (j, k) for all examples.
        b: bias as the rule sees it (k).
        reach: 1 where input j reaches output k, else 0 (j, k).
        R: relevance of the outputs (n, k).
        eps: stabilizer st.
        bias: absorb, ignore, keep or share; only share matters here, `b` says the rest.

    Montavon et al. 2019, section 10.2; sharing: Arras et al. 2017, "Explaining Recurrent Neural Network Predictions in
    Sentiment Analysis".
    """
    c = np.broadcast_to(c, (len(R), *reach.shape))
    stabilize = eps if isinstance(eps, Stabilizer) else Stabilizer(eps)
    z = c.sum(1) + b  # z_k = sum_j c_jk + b_k
    stable = stabilize(z)
    s = _divide(R, stable)  # s_k = R_k / st(z_k)
    R_in = (c * s[:, None, :]).sum(2)  # R_j = sum_k c_jk s_k
    if bias == "share":
        taken = s * (stable - c.sum(1))
        R_in += taken @ _divide(reach, reach.sum(0)).T
    return R_in


# Rules
def epsilon(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """LRP-epsilon: c_jk = a_j w_jk (Bach et al. 2015, eq. 58)."""
    return redistribute(a[:, :, None] * M, _seen(b, bias, b), reach, R, eps, bias)


zero = partial(epsilon, eps=0.0)
"""LRP-0: LRP-epsilon with eps = 0 (Bach et al. 2015, eq. 56)."""

norm = zero
"""Each input its share of a sum with fixed weights: LRP-0 for average pools and additions."""


def gamma_simple(a, M, b, reach, R, gamma=0.25, eps: Eps = 1e-6, bias="absorb"):
    """LRP-gamma: c_jk = a_j (w + gamma w+)_jk, bias b + gamma b+ (Montavon et al. 2019, section 10.2.1)."""
    return redistribute(
        a[:, :, None] * (M + gamma * _plus(M)), _seen(b, bias, b + gamma * _plus(b)), reach, R, eps, bias
    )


def gamma_generalized(a, M, b, reach, R, gamma=0.25, eps: Eps = 1e-6, bias="absorb"):
    """LRP-gamma for inputs of any sign (Andeol et al. 2021); z_k = sum_j a_j w_jk + b_k, always with the bias.

    Where z_k > 0: c_jk = a_j+ (w + gamma w+)_jk + a_j- (w + gamma w-)_jk, bias b + gamma b+.
    Where z_k < 0: c_jk = a_j+ (w + gamma w-)_jk + a_j- (w + gamma w+)_jk, bias b + gamma b-.
    Where z_k = 0, relevance is dropped.
    """
    z = a @ M + b
    up, down = M + gamma * _plus(M), M + gamma * _minus(M)
    a_plus, a_minus = _plus(a)[:, :, None], _minus(a)[:, :, None]
    b_above, b_below = _seen(b, bias, b + gamma * _plus(b)), _seen(b, bias, b + gamma * _minus(b))
    above = redistribute(a_plus * up + a_minus * down, b_above, reach, np.where(z > 0, R, 0), eps, bias)
    below = redistribute(a_plus * down + a_minus * up, b_below, reach, np.where(z < 0, R, 0), eps, bias)
    return above + below


def alpha_beta(a, M, b, reach, R, alpha=2.0, beta=1.0, eps: Eps = 1e-6, bias="absorb", conserve=False):
    """LRP-alpha-beta: alpha times the rule with c_jk = (a_j w_jk)+, b+, less beta times that with (a_j w_jk)-, b-.

    With `conserve`, where the sum of one side, sum_j c_jk + b_k, is exactly 0, the other side gets R_k, and that side
    nothing; where both are 0, R_k meets the positive side's denominator st(0), and is lost unless eps > 0 is shared.

    Bach et al. 2015, eq. 60.
    """
    c = a[:, :, None] * M
    c_plus, c_minus = _plus(c), _minus(c)
    b_plus, b_minus = _seen(b, bias, _plus(b)), _seen(b, bias, _minus(b))
    to_plus, to_minus = alpha * R, -beta * R
    if conserve:
        no_plus, no_minus = c_plus.sum(1) + b_plus == 0, c_minus.sum(1) + b_minus == 0
        to_plus = np.where(no_minus, R, np.where(no_plus, 0, to_plus))
        to_minus = np.where(no_minus, 0, np.where(no_plus, R, to_minus))
    positive = redistribute(c_plus, b_plus, reach, to_plus, eps, bias)
    return positive + redistribute(c_minus, b_minus, reach, to_minus, eps, bias)


zplus = partial(alpha_beta, alpha=1.0, beta=0.0)
"""The z+ rule: positive contributions alone, c_jk = (a_j w_jk)+ (Montavon et al. 2017, section 4)."""


def zbox(a, M, b, reach, R, low: Any = 0.0, high: Any = 1.0, eps: Eps = 1e-6, bias="absorb"):
    """The z^B rule: c_jk = a_j w_jk - l_j w+_jk - h_j w-_jk, no bias (Montavon et al. 2017, section 4).

    The bounds are numbers, or one for each channel, or one for each input.
    """
    low, high = (np.resize(bound, (a.shape[1], 1)) for bound in (low, high))  # channels run fastest: bounds repeat
    return redistribute(a[:, :, None] * M - low * _plus(M) - high * _minus(M), 0 * b, reach, R, eps, bias)


def flat(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """The flat rule: c_jk = 1 where j reaches k, no bias (Lapuschkin et al. 2019, methods)."""
    return redistribute(reach, 0 * b, reach, R, eps, bias)


def wsquare(a, M, b, reach, R, eps: Eps = 1e-6, bias="absorb"):
    """The w^2 rule: c_jk = w_jk^2, bias b^2 (Montavon et al. 2017, section 4)."""
    return redistribute(M**2, _seen(b, bias, b**2), reach, R, eps, bias)


def unchanged(a, M, b, reach, R):
    """R_j = R_j: activations, and layers that only move values, hand relevance on as it is."""
    return R


def winner_takes_all(a, M, b, reach, R):
    """R_j = sum of R_k over the windows k in which a_j is the largest, for max-pools; no promise among equals."""
    winner = _within(a, reach).argmax(1)  # (n, k)
    won = np.arange(a.shape[1])[None, :, None] == winner[:, None, :]
    return (won * R[:, None, :]).sum(2)


def derivative(a, M, b, reach, R):
    """sum_k w_jk R_k: the chain rule, which makes a gradient of relevance."""
    return R @ M.T


def derivative_of_relu(a, M, b, reach, R):
    """R_j where a_j > 0, else 0: the chain rule of a ReLU."""
    return np.where(a > 0, R, 0)


# Networks
def forward(network: Sequence[Layer], x: np.ndarray) -> list[np.ndarray]:
    """The input, and the output of every layer."""
    activations = [np.asarray(x, np.float64)]
    for layer in network:
        activations.append(layer(activations[-1]))
    return activations


def explain(network: Sequence[Layer], x: np.ndarray, rules: Sequence[Any], R: np.ndarray) -> list[np.ndarray]:
    """The relevance at the input of every layer, in forward order, when the output's is R.

    Args:
        network: the layers.
        x: inputs (n, ...).
        rules: a rule for each layer; for a Residual, the rules of its branch and after them that of the addition.
        R: relevance of the outputs, shaped as they are.
    """
    found, R = [], np.asarray(R, np.float64)
    for layer, a, rule in reversed(list(zip(network, forward(network, x)[:-1], rules, strict=True))):
        M, b, reach, _ = layer.sums(a.shape[1:])
        if isinstance(layer, Residual):
            *inner, adding = rule
            summands = np.hstack([_flat(a), _flat(forward(layer.branch, a)[-1])])
            skipped, branched = np.hsplit(adding(summands, M, b, reach, _flat(R)), 2)
            R = skipped.reshape(a.shape) + explain(layer.branch, a, inner, branched.reshape(a.shape))[0]
        else:
            R = rule(_flat(a), M, b, reach, _flat(R)).reshape(a.shape)
        found.insert(0, R)
    return found


def everywhere(
    network: Sequence[Layer],
    weights: Rule,
    *,
    sums: Rule = norm,
    max_pools: Rule = winner_takes_all,
    relus: Rule = unchanged,
) -> list[Any]:
    """One rule for all layers with weights, one for average pools and additions, one for max-pools, one for ReLUs."""

    def choose(layer):
        match layer:
            case Residual(branch):
                return [*map(choose, branch), sums]
            case Dense() | Conv():
                return weights
            case MaxPool():
                return max_pools
            case AvgPool() | GlobalAvgPool():
                return sums
            case Relu():
                return relus
        return unchanged

    return list(map(choose, network))


def gradient(network: Sequence[Layer], x: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The gradient of sum R z, with z the outputs: explained by the chain rule, where derivatives are the rules."""
    return explain(network, x, everywhere(network, derivative, sums=derivative, relus=derivative_of_relu), R)[0]


# Where relevance starts: functions of logits (n, classes) and target, a class or one for each example
def one_hot(logits, target):
    """R_c = 1 at the target c, 0 elsewhere."""
    return np.broadcast_to(np.arange(logits.shape[1]) == np.reshape(target, (-1, 1)), logits.shape).astype(float)


def logit(logits, target):
    """R_c = z_c at the target c, 0 elsewhere."""
    return logits * one_hot(logits, target)


def probability(logits, target):
    """R_c = P(c) = exp z_c / sum_c' exp z_c' at the target c, 0 elsewhere."""
    return _softmax(logits) * one_hot(logits, target)


def log_odds(logits, target):
    """For eta_c = log P(c) / (1 - P(c)) = -log sum_{c' != c} exp(-(z_c - z_c')): R_c = z_c, R_c' = -z_c' p_c'.

    p is the softmax over the other classes. This is the sum of the pairwise starts (c, c') with weights p_c', and sums
    to sum_c' p_c' (z_c - z_c'), which is eta_c plus the entropy of p.

    Montavon et al. 2019, on handling the top layer.
    """
    others = _softmax(np.where(one_hot(logits, target) == 1, -np.inf, logits))
    return logit(logits, target) - logits * others


def pairwise(logits, target, other):
    """For z_c - z_c': R_c = z_c at the target c, R_c' = -z_c' at the other class c', 0 elsewhere."""
    return logit(logits, target) - logit(logits, other)


def _softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# What LRP is compared with in courses: ways to split a score f(x) among the inputs
def all_on_one(x: np.ndarray, score: float, pixel: int = 0) -> np.ndarray:
    """R_i = f(x) for one input, 0 for the others: conserves, explains nothing."""
    return score * (np.arange(x.size) == pixel).reshape(x.shape)


def uniform(x: np.ndarray, score: float) -> np.ndarray:
    """R_i = f(x) / d: conserves, explains nothing."""
    return np.full(x.shape, score / x.size)


def natural(network: Sequence[Layer], x: np.ndarray, target: int) -> np.ndarray:
    """R_i = x_i df/dx_i, with f the logit of the target: exact for f(x) = sum_i x_i w_i; biases are not conserved."""
    return x * _gradient_of_logit(network, x, target)


def taylor(network: Sequence[Layer], x: np.ndarray, target: int, root: np.ndarray) -> np.ndarray:
    """R_i = df/dx_i (x0) (x_i - x0_i), first order about x0; sums to f(x) if f(x0) = 0 and f is linear in between."""
    return _gradient_of_logit(network, root, target) * (x - root)


def _gradient_of_logit(network, x, target):
    return gradient(network, x, one_hot(forward(network, x)[-1], target))


class Properties(NamedTuple):
    """Conservation, sum R - f(x), and the negative share of relevance, sum |R-| / sum |R|, are both 0 at best.

    Consistent relevance is zero where the score is.
    """

    conservation: float
    negative: float
    consistent: bool


def properties(R: np.ndarray, score: float) -> Properties:
    """How far relevance R of a score is conserved, positive and consistent."""
    negative = float(_divide(-_minus(R).sum(), np.abs(R).sum()))
    return Properties(float(R.sum() - score), negative, bool(score != 0 or not R.any()))


def compare(network: Sequence[Layer], x: np.ndarray, target: int, root: np.ndarray, pixel: int = 0):
    """The decompositions above beside LRP, for the logit of one example x (1, ...): (method, R, properties) each.

    for method, R, p in compare(network, x, target, root):
        print(f"{method:20} {p.conservation:10.3g} {p.negative:8.1%} {p.consistent}")
    """
    logits = forward(network, x)[-1]
    score = float(logits[0, target])
    found = {
        "all on one input": all_on_one(x, score, pixel),
        "uniform": uniform(x, score),
        "gradient x input": natural(network, x, target),
        "Taylor": taylor(network, x, target, root),
    }
    for name, rule in {"LRP-0": zero, "LRP-epsilon": epsilon, "LRP-z+": zplus}.items():
        found[name] = explain(network, x, everywhere(network, rule), logit(logits, target))[0]
    return [(name, R, properties(R, score)) for name, R in found.items()]
