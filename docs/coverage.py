"""Writes coverage.md: recognized layers, conservation, and the difference between compiled and eager runs.

    python docs/coverage.py [PYTHON ...]
    python docs/coverage.py --public

Each PYTHON is an interpreter with another version of JAX, and with lrp_jax, dm-haiku and equinox. With `--public`, only
the section of public models is written again, from `docs/public/*.json`.
"""

import collections
import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
from public.table import PUBLIC_TITLE, public_section

ROOT = Path(__file__).parents[1]
COVERAGE = ROOT / "docs" / "coverage.md"
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# Coverage

## Networks of this project

Small networks with random weights, written as their users write them (`tests/zoo.py`), are explained by LRP-ε in
float64.

- **Ledger**: the largest residual, relative to the relevance that flows. The ledger balances if the residual is zero up
  to rounding.
- **Arrived**: the fraction of the logits' relevance that reaches the input. The ledger shows where the rest was
  absorbed, mostly by biases.
- **Compiled - eager**: the largest difference, relative to the largest relevance.

Networks that compute in float32 internally, such as the attention of nnx, have errors of that precision.

Written by `python docs/coverage.py`; do not edit.

"""


def measured() -> list[list[str]]:
    """A table row for each network, measured in this interpreter."""
    from zoo import NETWORKS

    import lrp_jax
    from lrp_jax import rules
    from lrp_jax.rules.kinds import is_move

    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    rows = []
    for name, make in NETWORKS.items():
        network = make()
        args = network.params, network.x
        steps = [receiver.step for receiver in lrp_jax.plan(network.fn, rules.Epsilon())(*args).receivers]
        kinds = collections.Counter(step.kind for step in steps if not is_move(step.kind))
        ledger = lrp_jax.conservation(network.fn, rules.Epsilon())(*args)
        explain = lrp_jax.lrp(network.fn, rules.Epsilon())
        compiled = np.asarray(explain(*args))
        with jax.disable_jit():
            eager = np.asarray(explain(*args))
        difference = np.abs(compiled - eager).max() / np.abs(compiled).max()
        residual = max(map(ledger.relative_residual, ledger.rows))
        recognized = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        arrived = f"{ledger.relevance.sum() / ledger.score.sum():.0%}"
        balance = f"{'balanced' if ledger.balanced else 'NOT balanced'}, {residual:.0e}"
        rows.append([name, network.framework, recognized, arrived, balance, f"{difference:.0e}"])
        print(f"JAX {jax.__version__}: {name}", file=sys.stderr)
    return rows


def main(interpreters: list[str]) -> None:
    """Measures in this and the other interpreters, and writes the table."""
    found = {jax.__version__: measured()}
    for python in interpreters:
        run = subprocess.run([python, __file__, "--json"], check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(run.stdout)
    columns = ["network", "written in", "recognized", "arrived"]
    for version in found:
        columns += [f"ledger, JAX {version}", f"compiled - eager, JAX {version}"]
    lines = [columns, ["---"] * len(columns)]
    for same in zip(*found.values(), strict=True):
        lines.append(same[0][:4] + [cell for row in same for cell in row[4:]])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    write(HEAD + table + "\n")


def write(first: str) -> None:
    """Writes the first section, and the section of public models after it."""
    COVERAGE.write_text(first + "\n" + public_section(), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--public"]:
        write(COVERAGE.read_text("utf-8").partition("\n" + PUBLIC_TITLE)[0])
    elif sys.argv[1:] == ["--json"]:
        print(json.dumps({jax.__version__: measured()}))
    else:
        main(sys.argv[1:])
