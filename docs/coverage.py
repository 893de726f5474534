"""Writes coverage.md: which networks are recognized, conserve, and come out the same compiled and not.

    python docs/coverage.py [PYTHON ...]

Each PYTHON is another interpreter with another JAX, in which lrp_jax, dm-haiku and equinox are installed.
"""

import collections
import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# Coverage

Networks as their users write them, unmodified, with small random weights (`tests/zoo.py`), explained by LRP-ε in
float64. **Books**: the largest residual of the ledger, as a share of the relevance that moves; zero to rounding, or
the books are wrong. **Arrived**: the share of the logits' relevance that reached the input; the ledger says where the
rest stayed, most of it with biases. **Compiled = eager**: the largest difference, as a share of the largest relevance.
Networks that compute in float32 inside, such as nnx's attention, cannot be more exact than that.

Written by `python docs/coverage.py`; do not edit.

"""


def measured() -> list[list[str]]:
    """A row for each network, in this interpreter."""
    from zoo import NETWORKS

    import lrp_jax
    from lrp_jax import rules

    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    rows = []
    for name, make in NETWORKS.items():
        network = make()
        args = network.params, network.x
        steps = lrp_jax.plan(network.fn, rules.Epsilon())(*args).steps
        kinds = collections.Counter(step.kind for step in steps if step.kind not in rules.MOVES)
        ledger = lrp_jax.conservation(network.fn, rules.Epsilon())(*args)
        explain = lrp_jax.lrp(network.fn, rules.Epsilon())
        compiled = np.asarray(explain(*args))
        with jax.disable_jit():
            eager = np.asarray(explain(*args))
        difference = np.abs(compiled - eager).max() / np.abs(compiled).max()
        residual = max(map(ledger.relative_residual, ledger.entries))
        recognized = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        arrived = f"{ledger.relevance.sum() / ledger.score.sum():.0%}"
        books = f"{'close' if ledger.closes else 'do NOT close'}, {residual:.0e}"
        rows.append([name, network.framework, recognized, arrived, books, f"{difference:.0e}"])
        print(f"JAX {jax.__version__}: {name}", file=sys.stderr)
    return rows


def main(interpreters: list[str]) -> None:
    """Measures here and in the other interpreters; writes the table."""
    found = {jax.__version__: measured()}
    for python in interpreters:
        run = subprocess.run([python, __file__, "--json"], check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(run.stdout)
    columns = ["network", "written in", "recognized", "arrived"]
    for version in found:
        columns += [f"books, JAX {version}", f"compiled = eager, JAX {version}"]
    lines = [columns, ["---"] * len(columns)]
    for same in zip(*found.values(), strict=True):
        lines.append(same[0][:4] + [cell for row in same for cell in row[4:]])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (ROOT / "docs" / "coverage.md").write_text(HEAD + table + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--json"]:
        print(json.dumps({jax.__version__: measured()}))
    else:
        main(sys.argv[1:])
