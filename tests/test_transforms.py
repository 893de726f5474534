"""Linear operations that are no plain matrix product: Fourier filters, solvers, sparse products; dynamic filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import lrp_jax
from lrp_jax import rules

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6))
W = RNG.normal(size=(6, 6)) + 3 * np.eye(6)
FILTER = RNG.normal(size=6)
PHASES = np.exp(1j * np.arange(3))


def recurrence(x):
    """A linear state space with complex states."""

    def step(state, u):
        state = state * np.exp(-0.1 + 0.5j) + u
        return state, state.real

    return lax.scan(step, jnp.zeros(len(x), complex), x.T)[1].T


LINEAR = {
    "rfft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(FILTER), 6),
    "padded rfft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x, 12) * jnp.fft.rfft(FILTER, 12), 12)[:, :11],
    "fft2": lambda x: jnp.fft.ifft2(jnp.fft.fft2(x[:, None].repeat(2, 1)) * FILTER).real.sum(1),
    "imaginary part": lambda x: jnp.fft.fft(x).imag + jnp.fft.fft(x).real,
    "rotation": lambda x: jnp.concatenate([(z := lax.complex(x[:, ::2], x[:, 1::2]) * PHASES).real, z.imag], 1),
    "recurrence": recurrence,
    "dct": jax.scipy.fft.dct,
    "fftconvolve": lambda x: jax.scipy.signal.fftconvolve(x, FILTER[None, :3], mode="same"),
    "solve": lambda x: jnp.linalg.solve(W, x.T).T,
    "cho_solve": lambda x: jax.scipy.linalg.cho_solve((jnp.tril(W), True), x.T).T,
    "triangular": lambda x: jax.scipy.linalg.solve_triangular(np.tril(W), x.T, lower=True).T,
}


@pytest.mark.parametrize("fn", LINEAR.values(), ids=LINEAR)
def test_a_linear_operation_has_the_relevance_of_its_matrix(fn):
    matrix = np.asarray(jax.jacobian(lambda x: fn(x[None])[0])(X[0])).T
    z = X @ matrix
    np.testing.assert_allclose(fn(X), z, rtol=1e-9, atol=1e-12)
    R = RNG.normal(size=z.shape)
    expected = X * ((R / z) @ matrix.T)
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(X, relevance=R), expected, rtol=1e-7, atol=1e-9)
    assert lrp_jax.conservation(fn, rules.Zero())(X, relevance=R).balanced


def test_a_spectral_layer_has_the_name_of_its_weights_and_its_constant_is_a_bias():
    def fn(p, x):
        return jnp.fft.irfft(jnp.fft.rfft(x) * lax.complex(p["re"], p["im"]) + p["b"], 6)

    p = {"layer": {"re": FILTER[:4], "im": FILTER[2:], "b": np.full(4, 0.3 + 0j)}}
    fn_of = lambda p, x: fn(p["layer"], x)
    plan = lrp_jax.plan(fn_of, rules.Zero())(p, X)
    assert [(s.kind, s.name) for s in plan.steps] == [("transform", "layer")]
    ledger = lrp_jax.conservation(fn_of, rules.Zero())(p, X, target=1)
    assert ledger.balanced
    without = np.asarray(fn_of({"layer": {**p["layer"], "b": 0 * p["layer"]["b"]}}, X))[:, 1]
    np.testing.assert_allclose(ledger.relevance, without, rtol=1e-9)


SPECTRA = {
    "absolute": lambda z: jnp.abs(z),
    "power": lambda z: z.real**2 + z.imag**2,
    "by hand": lambda z: jnp.sqrt(z.real**2 + z.imag**2),
}


@pytest.mark.parametrize("of", SPECTRA.values(), ids=SPECTRA)
def test_a_spectrum_conserves_relevance(of):
    fn = lambda x: of(jnp.fft.rfft(x)[:, 1:3])
    ledger = lrp_jax.conservation(fn, [])(X, target=1)
    assert ledger.balanced
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=1e-9)
    # all spectra have the same shares of real and imaginary parts, in proportion to their squares
    gradient = jax.jacobian(lambda x: jnp.abs(jnp.fft.rfft(x)[:, 2]).sum())(X)
    z = fn(X)[:, 1]
    magnitude = np.abs(np.fft.rfft(X)[:, 2])
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(X, target=1), X * gradient * (z / magnitude)[:, None], rtol=1e-9)


@pytest.mark.parametrize("fn", [
    lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(x[:, ::-1]), 6),
    lambda x: jnp.exp(1j * x.astype(complex)).real,
    lambda x: jnp.angle(jnp.fft.rfft(x)),
])  # fmt: skip
def test_functions_of_complex_numbers_that_are_not_linear_are_errors(fn):
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"not linear and its values are complex|`atan2`|`div`"):
        lrp_jax.plan(fn, rules.Zero())(X)


DENSE = np.where(RNG.random((6, 6)) > 0.5, W, 0)
SPARSE = sparse.BCOO.fromdense(DENSE)
PRODUCTS = {
    "right": lambda x: x @ SPARSE + FILTER,
    "left": lambda x: (SPARSE.T @ x.T + FILTER[:, None]).T,
    "bcsr": lambda x: (sparse.BCSR.from_bcoo(SPARSE.T) @ x.T).T + FILTER,
    "ragged": lambda x: lax.ragged_dot(x, jnp.stack([DENSE, DENSE]), jnp.array([1, 1])) + FILTER,
}


@pytest.mark.parametrize("rule", [rules.Zero(), rules.ZPlus(), rules.Gamma(0.5), rules.WSquare()], ids=str)
@pytest.mark.parametrize("fn", PRODUCTS.values(), ids=PRODUCTS)
def test_a_sparse_product_is_a_dense_layer(fn, rule):
    found = lrp_jax.lrp(fn, rule)(X, target=2)
    expected = lrp_jax.lrp(lambda x: x @ DENSE + FILTER, rule)(X, target=2)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_sparse_parameter_names_its_layer():
    fn = lambda p, x: x @ p["layer"]["kernel"]
    plan = lrp_jax.plan(fn, rules.Zero())({"layer": {"kernel": SPARSE}}, X)
    assert [(s.kind, s.name) for s in plan.steps if s.name] == [("dense", "layer/kernel")]


def test_sparse_weights_that_depend_on_the_input_are_a_factor():
    indices = np.stack([np.arange(6), RNG.permutation(6)], 1)
    of = lambda data, h: sparse.BCOO((data, indices), shape=(6, 6)) @ h
    fn = lambda x: of(x[0], jnp.tanh(x[1]))[None]
    plain = lambda x: (x[0] * jnp.tanh(x[1])[indices[:, 1]])[None]
    np.testing.assert_allclose(*(lrp_jax.lrp(f, [])(X, target=2) for f in (fn, plain)), rtol=1e-12)


def filtered(image, kernel):
    return lax.conv(image[None, None], kernel[None, None], (1,), "VALID")[0, 0]


FILTERS = {
    "conv": filtered,
    "convolve": lambda image, kernel: jnp.convolve(image, kernel[::-1], "valid"),
    "correlate": lambda image, kernel: jnp.correlate(image, kernel, "valid"),
}


@pytest.mark.parametrize("filtered", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vmapped", [False, True])
def test_a_filter_that_depends_on_the_input_gets_half_of_the_relevance(filtered, vmapped):
    fn = lambda x: jax.vmap(lambda r: filtered(r, jnp.tanh(r[:3])))(x) if vmapped else filtered(x[0], x[1, :3])[None]
    R = RNG.normal(size=fn(X).shape)
    expected = np.zeros_like(X)
    for n in range(len(R)):
        image, kernel = (X[n], np.tanh(X[n, :3])) if vmapped else (X[0], X[1, :3])
        z = np.asarray(fn(X))[n]
        for k in range(4):
            shares = image[k : k + 3] * kernel * R[n, k] / z[k] / 2
            expected[n, k : k + 3] += shares
            expected[n if vmapped else 1, :3] += shares
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(X, relevance=R), expected, rtol=1e-9, atol=1e-12)
