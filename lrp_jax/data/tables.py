"""Tables of features: data sets of scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrp_jax.spelling import did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float32, Int32

DATA_SETS = ("iris", "wine", "breast_cancer", "digits")
"""Names of the classification data sets included in scikit-learn."""


class TableError(ValueError):
    """A data set or a required package is missing; the message states which."""


class Table(NamedTuple):
    """Training and test examples. Each feature has mean 0 and variance 1 over the training examples.

    Attributes:
        features, classes: the names of the features and of the classes.
        train, test: values (N, features), float32, and class indices (N,), int32.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    train: tuple[Float32[np.ndarray, "N features"], Int32[np.ndarray, " N"]]
    test: tuple[Float32[np.ndarray, "N features"], Int32[np.ndarray, " N"]]


def load(name: str, seed: int = 0) -> Table:
    """A data set of scikit-learn; a quarter of the examples are test examples.

    Args:
        name: one of `DATA_SETS`.
        seed: seed of the random split.

    Raises:
        TableError: the data set is unknown, or scikit-learn is not installed.
    """
    if name not in DATA_SETS:
        raise TableError(
            f"no data set {name!r}; expected one of {', '.join(DATA_SETS)}.{did_you_mean(name, DATA_SETS)}"
        )
    try:
        from sklearn import datasets
    except ImportError:
        raise TableError("data sets need the package scikit-learn: pip install 'lrp_jax[tabular]'.") from None
    found: Any = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(seed).permutation(len(found.target))
    tests = len(order) // 4
    train, test = order[tests:], order[:tests]
    mean, std = found.data[train].mean(0), found.data[train].std(0)
    x = ((found.data - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    y = found.target.astype(np.int32)
    return Table(
        tuple(map(str, found.feature_names)),
        tuple(map(str, found.target_names)),
        (x[train], y[train]),
        (x[test], y[test]),
    )
