"""Explains public JAX models with small random weights, and compares what is recognized with what the models contain.

    python docs/public_models.py --list
    python docs/public_models.py --only NAME          # one model, in this process
    python docs/public_models.py --group keras        # all models of a group
    python docs/public_models.py --group keras --match VGG

The interpreter needs the packages of the group (`docs/public/GROUP.txt`) and lrp_jax. Results are written to
`docs/public/GROUP.json`; `docs/coverage.py` writes the table from them.
"""

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PUBLIC = ROOT / "docs" / "public"
sys.path.insert(0, str(ROOT / "docs"))
os.environ.setdefault("KERAS_BACKEND", "jax")

from public import GROUPS, models  # noqa: E402


def measured(name: str, make) -> dict:
    """The result of one model: a row of the table."""
    import jax

    jax.config.update("jax_enable_x64", True)
    row = {"name": name, "jax": jax.__version__, "package": make.package, "version": _version(make.package)}
    try:
        model = make()
        jax.config.update("jax_debug_nans", False)  # a package may have set it
        import numpy as np
        from public.common import as_trained

        dtype = np.float64 if model.float64 else np.float32
        model = _replaced(model, params=as_trained(model.params, dtype), x=_cast(model.x, dtype))
        selected = _selected(model)
        shape = jax.eval_shape(selected, model.params, model.x).shape
        row["logits"] = list(shape)
    except Exception as error:
        return row | {"status": "package fails", "error": _sentence(error)}
    try:
        return row | _explained(model, selected)
    except Exception as error:
        return row | {"status": "refused", "error": _sentence(error)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _replaced(model, **changes):
    import dataclasses

    return dataclasses.replace(model, **changes)


def _cast(x, dtype):
    import jax

    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, x)


def _selected(model):
    """The function that returns the logits alone."""

    def fn(params, x):
        out = model.fn(params, x)
        if model.select is None:
            return out
        return model.select(out) if callable(model.select) else out[model.select]

    return fn


def _sentence(error: Exception) -> str:
    text = re.sub(r"\S*/site-packages/", "", " ".join(str(error).split()).replace(f"{ROOT}{os.sep}", ""))
    return f"{type(error).__name__}: {text[:400]}"


def _ledger(fn, args):
    """The ledger of a function of several examples, or of one."""
    import jax

    import lrp_jax
    from lrp_jax import rules

    params, x = args
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(x)}
    if rows == {jax.eval_shape(fn, params, x).shape[0]}:
        return lrp_jax.conservation(fn, rules.Epsilon())(params, x)
    one = lambda params, x: fn(params, jax.tree.map(lambda a: a[0], x))
    return lrp_jax.conservation(one, rules.Epsilon())(params, jax.tree.map(lambda a: a[None], x))


def _explained(model, fn) -> dict:
    import jax
    import numpy as np
    from public.common import CHECKED, counted

    import lrp_jax
    from lrp_jax import rules
    from lrp_jax.rules.kinds import is_move

    args = model.params, model.x
    expected = counted(model)
    row: dict = {"expected": expected}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = lrp_jax.plan(fn, rules.Epsilon())(*args)
        ledger = _ledger(fn, args)
        times, logits, explanation = _compiled(fn, args)
    kinds = Counter(
        step.kind
        for step in [*(receiver.step for receiver in plan.receivers), *plan.constant]
        if not is_move(step.kind)
    )
    difference = np.abs(logits - np.asarray(explanation.logits)).max() / np.abs(logits).max()
    row |= {
        "kinds": dict(sorted(kinds.items())),
        "misread": {k: [expected[k], kinds.get(k, 0)] for k in CHECKED if expected[k] != kinds.get(k, 0)},
        "balanced": bool(ledger.balanced),
        "residual": max(map(ledger.relative_residual, ledger.rows)),
        "arrived": float(ledger.relevance.sum() / ledger.score.sum()),
        "finite": all(np.isfinite(R).all() for R in jax.tree.leaves(explanation.relevance)),
        "logits differ": float(difference),
        "dtype": str(jax.tree.leaves(explanation.relevance)[0].dtype),
        "warnings": sorted({f"{w.category.__name__}: {' '.join(str(w.message).split())[:200]}" for w in caught}),
        "preset": _preset(fn, args),
    }
    good = row["balanced"] and row["finite"] and not row["misread"]
    return row | times | {"status": "ran" if good else "misread" if row["misread"] else "not balanced"}


def _preset(fn, args) -> str:
    """Whether a preset with rules that modify weights also gives finite relevance."""
    import jax
    import numpy as np

    import lrp_jax
    from lrp_jax import composites

    try:
        relevance = jax.tree.leaves(lrp_jax.lrp(fn, composites.epsilon_plus_flat())(*args))
    except Exception as error:
        return _sentence(error)
    return "finite" if all(np.isfinite(R).all() for R in relevance) else "not finite"


def _compiled(fn, args) -> tuple[dict, Any, Any]:
    """CPU time to trace and compile the gradient, and relevance over the gradient; the logits; the explanation.

    Small models are compiled three times; the median counts.
    """
    import jax
    import numpy as np

    import lrp_jax
    from lrp_jax import rules

    def gradient(params, x):
        def score(x):
            logits = fn(params, x)
            return logits.max(-1).sum(), logits

        return jax.grad(score, has_aux=True)(x)

    def relevance(params, x):
        return lrp_jax.lrp(fn, rules.Epsilon(), logits=True)(params, x)

    seconds: dict[str, list[float]] = {"gradient": [], "relevance": []}
    results: dict = {}
    while not results or (len(seconds["gradient"]) < 3 and sum(map(sum, seconds.values())) < 6):
        for name, function in (("gradient", gradient), ("relevance", relevance)):
            jax.clear_caches()
            start = time.process_time()
            compiled = jax.jit(function).lower(*args).compile()
            seconds[name].append(time.process_time() - start)
            results[name] = compiled(*args)
    ratio = statistics.median(r / g for g, r in zip(*seconds.values(), strict=True))
    times = {"gradient compiled in": round(statistics.median(seconds["gradient"]), 2), "compile ratio": round(ratio, 2)}
    return times, np.asarray(results["gradient"][1]), results["relevance"]


def run_group(group: str, match: str, missing: bool, limit: float) -> None:
    """Runs the models of a group in another process, which starts again after a crash, and keeps the results."""
    known = _results(group) if missing else {}
    pending = [name for name in models(group) if match.lower() in name.lower() and name not in known]
    while pending:
        command = [sys.executable, __file__, "--only", *pending]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            while pending:
                start = time.time()
                watch = threading.Timer(limit, process.kill)
                watch.start()
                line = next((line for line in process.stdout if line.startswith("RESULT ")), None)
                watch.cancel()
                name = pending.pop(0)
                ended = {"name": name, "status": "process ended", "error": f"no result in {limit:.0f} s, or a crash"}
                _keep(group, json.loads(line[7:]) if line else ended, time.time() - start)
                if line is None:
                    break


def _results(group: str) -> dict:
    """The known results of the models of a group, by name."""
    path = PUBLIC / f"{group}.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: row for name, row in results.items() if name in models(group)}


def _keep(group: str, row: dict, seconds: float) -> None:
    """Adds a result to those of its group, and prints it."""
    text = json.dumps(_results(group) | {row["name"]: row}, indent=1, sort_keys=True)
    (PUBLIC / f"{group}.json").write_text(text + "\n", encoding="utf-8")
    about = row.get("misread") or row.get("error", "")
    print(f"{seconds:4.0f} s  {row['status']:13}  {row['name']}  {about}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the names of all models")
    parser.add_argument("--only", nargs="+", help="run these models in this process, and print their results")
    parser.add_argument("--group", choices=GROUPS, help="run all models of a group")
    parser.add_argument("--match", default="", help="with --group: only models whose name contains this text")
    parser.add_argument("--missing", action="store_true", help="with --group: only models without a result")
    parser.add_argument("--limit", type=float, default=300, help="with --group: seconds for one model")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{group}: {name}" for group in GROUPS for name in models(group)))
    elif options.only:
        group = next(group for group in GROUPS if options.only[0] in models(group))
        for name in options.only:
            print("RESULT " + json.dumps(measured(name, models(group)[name])), flush=True)
    elif options.group:
        run_group(options.group, options.match, options.missing, options.limit)


if __name__ == "__main__":
    main()
