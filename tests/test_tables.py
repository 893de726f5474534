"""Tables: data sets, their networks and the ranking of features; the network of the tutorial."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import run

from lrp_jax import lrp
from lrp_jax.cli._explainers import RULES
from lrp_jax.data import tables
from lrp_jax.data.tables import TableError
from lrp_jax.models import mlp

EXAMPLE = Path(__file__).parents[1] / "examples" / "tutorial_network.py"


@pytest.mark.parametrize("name", tables.DATA_SETS)
def test_data_sets_are_split_and_scaled(name):
    table = tables.load(name)
    x, y = table.train
    assert x.shape == (len(y), len(table.features))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    assert set(np.unique(x.std(0).round(3))) <= {0.0, 1.0}
    assert len(table.test[1]) == (len(y) + len(table.test[1])) // 4
    assert set(np.unique(y)) == set(range(len(table.classes)))
    both = np.concatenate([x, table.test[0]])
    assert len(np.unique(both, axis=0)) > 0.9 * len(both)


def test_unknown_data_sets_and_missing_packages_raise(monkeypatch):
    with pytest.raises(TableError, match="no data set 'boston'; expected one of iris, wine, breast_cancer, digits"):
        tables.load("boston")
    table = tables.load("iris")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(TableError, match=r"pip install 'lrp_jax\[tabular\]'"):
        tables.load("iris")
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(TableError, match=r"pip install 'lrp_jax\[tabular\]'"):
        mlp.fit(mlp.network_for(table), table)


def test_the_feature_that_determines_the_class_has_the_most_relevance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = (x[:, 2] > 0).astype(np.int32)
    table = tables.Table(tuple("abcdef"), ("no", "yes"), (x[:300], y[:300]), (x[300:], y[300:]))
    network = mlp.network_for(table, (16,))
    params = mlp.fit(network, table, steps=300)
    apply = lambda params, x: network.apply({"params": params}, x)
    assert np.mean(np.asarray(apply(params, table.test[0])).argmax(-1) == table.test[1]) > 0.9
    R = lrp(apply, RULES["LRP-epsilon"])(params, *table.test[:1], target=table.test[1])
    assert np.argmax(R.mean(0)) == 2
    assert R.mean(0)[2] > 4 * np.abs(np.delete(R.mean(0), 2)).max()


def test_table_command_prints_and_draws_the_ranking(tmp_path, capsys):
    code, out, err = run(capsys, "table", "wine", "--out", tmp_path, "--hidden", 16)
    assert (code, err) == (0, "")
    assert out.startswith("wine: 13 features, 3 classes; ")
    amounts = [float(line.split()[-3]) for line in out.splitlines()[1:-1]]
    assert len(amounts) == 13
    assert amounts == sorted(amounts, reverse=True)
    assert (tmp_path / "wine_features.png").exists()
    code, _, err = run(capsys, "table", "wine", "--out", tmp_path)
    assert code == 2
    assert "exists; use --overwrite" in err
    code, _, err = run(capsys, "table", "boston", "--out", tmp_path)
    assert code == 2
    assert "no data set 'boston'" in err


def test_the_network_of_the_tutorial_is_conservative(tmp_path):
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "w.safetensors").exists()
    lines = done.stdout.splitlines()
    for start in (1, 9):
        sums = [line.partition("sums")[2] for line in lines[start : start + 4]]
        assert len(set(sums)) == 1  # the same at every layer
    assert lines[1].split()[0] == "fc1"
    assert "The ledger balances" in lines[-1]
    assert "100.00% of the score reached the input" in lines[-1]
