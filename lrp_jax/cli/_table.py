"""The command `lrp-jax table`: the features of a table, ranked by relevance."""

from itertools import pairwise
from typing import Any

from lrp_jax.cli._arguments import add_format, add_out, positive, seed_number
from lrp_jax.cli._common import CommandError, check_folder, check_not_existing, save_figures
from lrp_jax.cli._explainers import RULES

_MAX_WEIGHTS = 10_000_000


def add(commands) -> None:
    """Adds the command to the parser."""
    table = commands.add_parser(
        "table",
        help="rank the features of a table by their relevance",
        description="Trains a network of dense layers on one of scikit-learn's data sets (iris, wine, breast_cancer, "
        "digits), explains the true class of each test example, and ranks the features by their mean relevance.",
    )
    table.add_argument("name", metavar="DATA_SET", help="iris, wine, breast_cancer or digits")
    hidden = "widths of the hidden layers (default: 64 32)"
    table.add_argument("--hidden", nargs="+", type=positive, default=[64, 32], metavar="WIDTH", help=hidden)
    rule = "the rule for all layers (default: %(default)s)"
    table.add_argument("--rule", choices=RULES, default="LRP-epsilon", help=rule)
    table.add_argument("--shown", type=positive, default=20, metavar="N", help="features drawn (default: 20)")
    seed = "seed of the split and of the initial weights (default: 0)"
    table.add_argument("--seed", type=seed_number, default=0, metavar="N", help=seed)
    add_out(table)
    add_format(table)
    table.set_defaults(run=_table)


def _table(options) -> int:
    from lrp_jax.data import tables
    from lrp_jax.models import mlp

    file = options.out / f"{options.name}_features.{options.format}"
    check_not_existing([file], options.overwrite)
    check_folder(options.out)
    try:
        table = tables.load(options.name, options.seed)
        widths = [len(table.features), *options.hidden, len(table.classes)]
        if (count := sum(a * b for a, b in pairwise(widths))) > _MAX_WEIGHTS:
            raise CommandError(f"--hidden makes {count} weights; expected at most {_MAX_WEIGHTS}.")
        network = mlp.network_for(table, options.hidden)
        params = mlp.fit(network, table, seed=options.seed)
    except tables.TableError as error:
        raise CommandError(error) from None
    import numpy as np

    from lrp_jax import lrp

    x, y = table.test
    apply: Any = lambda params, x: network.apply({"params": params}, x)
    found = lrp(apply, RULES[options.rule], logits=True)(params, x, target=y)
    logits, R = np.asarray(found.logits), np.asarray(found.relevance, np.float64)
    accuracy = f"{np.mean(logits.argmax(-1) == y):.1%} of {len(y)} test examples right"
    mean, error = R.mean(0), R.std(0) / len(R) ** 0.5
    print(f"{options.name}: {len(table.features)} features, {len(table.classes)} classes; {accuracy}")
    order = np.argsort(-mean)
    width = max(map(len, table.features))
    for i in order:
        print(f"  {table.features[i]:{width}}  {mean[i]:8.4f} +- {error[i]:.4f}")
    drawn = order[: options.shown]
    shown = "" if len(drawn) == len(order) else f"; {len(drawn)} of {len(order)} features"
    title = f"{options.name}: {options.rule}, {accuracy}{shown}"
    bars = _bars([table.features[i] for i in drawn], mean[drawn], 1.96 * error[drawn], title)
    save_figures({file: bars}, options.overwrite)
    return 0


def _bars(names: list[str], mean, error, title: str) -> Any:
    """A figure of the mean relevance of features."""
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(7, 0.9 + 0.26 * len(names)), layout="constrained")
    ax = plot.bars(dict(zip(names, mean, strict=True)), figure.subplots(), dict(zip(names, error, strict=True)))
    ax.set_xlabel("mean relevance of the true class, with 95 % confidence interval")
    ax.set_title(title, fontsize=10)
    return figure
