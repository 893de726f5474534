"""The section of coverage.md about public models, from `docs/public/*.json`."""

import json
from collections import Counter
from pathlib import Path

RESULTS = tuple(sorted(Path(__file__).parent.glob("*.json")))
PUBLIC_TITLE = "## Public models"

TEXT = """## Public models

Models of packages on PyPI, unmodified, with small random weights (`docs/public/`, versions in `docs/public/*.txt`), are
explained by LRP-ε with JAX {jax}. {summary}

The number of calls of dense layers, convolutions, normalizations and softmaxes is counted in the classes of the
framework while the model is traced, independently of lrp_jax. A model is *misread* if the plan has another number of
steps of these kinds. Where a call is no step (a layer whose result is not used, a product with a bare parameter), the
expected number is corrected by hand in `docs/public/`.

- **Ledger**: the largest residual, relative to the relevance that flows. About 1e-16 is rounding in float64; about 1e-7
  is rounding in float32, in which many models compute whatever their parameters are.
- **Arrived**: the fraction of the score that reaches the input. Biases absorb most of the rest; weights are random.
- **Compile time**: CPU time to trace and compile relevance, divided by that of the gradient.
- **Preset**: whether `epsilon_plus_flat` gives finite relevance.

Written by `python docs/public_models.py` and `python docs/coverage.py --public`; do not edit.

| model | version | recognized | arrived | ledger | compile time | preset |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

### Models that are misread or refused, and packages that do not run

{others}
"""

REMARKS = {
    "diffrax": "An adaptive solver chooses its steps from the values that are explained. Use constant "
    "steps ([frameworks.md](frameworks.md)).",
    "triangular_spline_flow": "The spline is a quotient of two polynomials of the input, and no rule covers it.",
    "BoTNet": "The model ends in a log-softmax. Explain a score that is the same for its logits: "
    "`output=lrp_jax.outputs.probability`.",
    "SimpleRNN": "Keras mixes float32 and float64 in this layer if JAX uses 64 bits.",
    "RNN of SimpleCell": "The model changes its random state when it is called.",
    "T5": "transformers calls `jnp.clip(a_max=...)`, which JAX 0.12 removed.",
    "LongT5": "transformers calls `jnp.clip(a_max=...)`, which JAX 0.12 removed.",
    "jaxkan": "The package assigns a list of modules, which needs `nnx.List` since Flax 0.12.",
    "jimmy-vision": "The package imports a module of Flax that no longer exists.",
    "perceiver-jax": "The package uses a method of arrays that JAX removed.",
    "vit-flax": "The package needs Flax 0.2 (`flax.nn`).",
    "eqxvision": "The package needs Equinox 0.9 (`equinox.experimental`).",
    "jvt": "The package needs JAX 0.4 (`jax.random.KeyArray`).",
    "neural-tangents": "The package imports TensorFlow through `jax2tf`.",
    "transformer-in-transformer-flax": "The position embeddings of the package have a wrong shape.",
    "equimo: SHViT": "A LayerNorm of the package gets an array of another shape than it expects.",
    "equimo: FasterViT": "The package calls `jax.vmap` with `in_axes` that current JAX refuses.",
}
"""Why a model is not explained, by a part of its name."""


def public_section() -> str:
    """The section, in Markdown."""
    results = [row for path in RESULTS for row in json.loads(path.read_text("utf-8")).values()]
    rows = sorted(results, key=lambda row: (row.get("package", "").lower(), row["name"]))
    explained = [row for row in rows if row["status"] == "ran"]
    others = [row for row in rows if row["status"] != "ran"]
    counts = Counter(row["status"] for row in rows)
    versions = ", ".join(sorted({row["jax"] for row in rows if "jax" in row}))
    summary = (
        f"Of {len(rows)} models, {counts['ran']} are explained without a change, "
        f"{counts['misread'] + counts['not balanced']} are misread, {counts['refused']} are refused with an error, and "
        f"{counts['package fails'] + counts['process ended']} do not run with this JAX, with or without lrp_jax."
    )
    lines = "\n".join("| " + " | ".join(_cells(row)) + " |" for row in explained)
    return TEXT.format(jax=versions, summary=summary, rows=lines, others=_table_of_others(others))


def _cells(row: dict) -> list[str]:
    recognized = ", ".join(f"{count} {kind}" for kind, count in row["kinds"].items())
    ratio = f"{row['compile ratio']:.1f}" if "compile ratio" in row else ""
    preset = row["preset"] if row["preset"] in ("finite", "not finite") else "refused"
    version = f"{row['package']} {row['version']}"
    return [row["name"], version, recognized, f"{row['arrived']:.0%}", f"{row['residual']:.0e}", ratio, preset]


def _table_of_others(rows: list[dict]) -> str:
    lines = ["| model | version | result | reason |", "| --- | --- | --- | --- |"]
    for row in rows:
        version = f"{row.get('package', '')} {row.get('version', '')}".strip()
        lines.append(f"| {row['name']} | {version} | {row['status']} | {_reason(row)} |")
    return "\n".join(lines)


def _reason(row: dict) -> str:
    remark = next((text for part, text in REMARKS.items() if part in row["name"]), "")
    if row["status"] == "misread":
        differs = "; ".join(f"{found} {kind}, expected {true}" for kind, (true, found) in row["misread"].items())
        return f"{differs}. {remark}".strip()
    return remark or row.get("error", "").replace("|", "\\|")[:200]
