"""Batches, class shares and similarity, against values computed by hand."""

import numpy as np
import pytest

from lrp_jax import evaluation, rules


def test_batches_have_one_size_and_the_last_one_is_padded_with_zeros():
    x = np.arange(1.0, 11.0).reshape(5, 2)
    found = list(evaluation.padded_batches(x, 2))
    assert [len(part) for part, _ in found] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in found]), x)
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in found]), np.pad(x, [(0, 1), (0, 0)]))
    ((part, batch),) = evaluation.padded_batches([3, 4], 8, lambda part: np.array(part)[:, None])
    assert (part, batch.tolist()) == ([3, 4], [[3], [4]])
    assert list(evaluation.padded_batches([], 8)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_class_shares_of_a_linear_network_by_hand(batch_size):
    w, x = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, -5.0]]), np.array([[1.0, 1.0], [2.0, 0.0], [1.0, 0.0]])
    z = np.maximum(x @ w, 0)
    shares = z / z.sum(1, keepdims=True)
    found = evaluation.class_shares(lambda w, x: x @ w, rules.Zero(), batch_size=batch_size)(w, x, labels=[0, 1, 0])
    np.testing.assert_allclose(found.correct, (shares[0, 0] + shares[1, 1] + shares[2, 0]) / 3, rtol=1e-9)
    np.testing.assert_allclose(found.incorrect, (shares[0, 1] + shares[1, 0] + shares[2, 1]) / 3, rtol=1e-9)
    assert found.agreement == pytest.approx(1 / 3)


def test_similarity_is_the_mean_cosine():
    a = np.random.default_rng(0).normal(size=(5, 4, 4, 1))
    found = evaluation.cosine_similarity({"a": a, "twice": 2 * a, "minus": -a})
    np.testing.assert_allclose(found, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)
