"""The command `lrp-jax table`: which features of a table matter to a network?"""

from pathlib import Path
from typing import Any

from lrp_jax.cli._common import RULES, CommandError, make_folder, refuse_existing, save_figure
from lrp_jax.cli._photos import FORMATS, positive, whole


def add(commands) -> None:
    """Adds the command to the parser's."""
    table = commands.add_parser(
        "table",
        help="rank the features of a table by their relevance",
        description="Trains a network of dense layers on one of scikit-learn's data sets (iris, wine, breast_cancer, "
        "digits), explains the true class of each test example, and ranks the features by their mean relevance.",
    )
    table.add_argument("name", metavar="DATA_SET", help="iris, wine, breast_cancer or digits")
    hidden = "widths of the hidden layers (default: 64 32)"
    table.add_argument("--hidden", nargs="+", type=positive, default=[64, 32], metavar="WIDTH", help=hidden)
    table.add_argument("--rule", choices=RULES, default="LRP-epsilon", help="for all layers (default: %(default)s)")
    table.add_argument("--shown", type=positive, default=20, metavar="N", help="features drawn (default: 20)")
    table.add_argument("--seed", type=whole, default=0, metavar="N", help="of the split and the weights (default: 0)")
    table.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the picture")
    table.add_argument("--format", choices=FORMATS, default="png", help="of the picture (default: %(default)s)")
    table.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    table.set_defaults(run=_table)


def _table(options) -> int:
    from lrp_jax import tabular

    file = options.out / f"{options.name}_features.{options.format}"
    refuse_existing([file], options.overwrite)
    try:
        table = tabular.load(options.name, options.seed)
        network = tabular.network_for(table, options.hidden)
        params = tabular.fit(network, table, seed=options.seed)
    except tabular.TableError as error:
        raise CommandError(error) from None
    make_folder(options.out)
    import numpy as np
    from matplotlib.figure import Figure

    from lrp_jax import experiments, lrp, plot

    x, y = table.test
    apply: Any = lambda params, x: network.apply({"params": params}, x)
    explain = lrp(apply, experiments.everywhere(experiments.RULES[options.rule]), value=True)
    logits, R = (np.asarray(v, np.float64) for v in explain(params, x, target=y))
    right = np.mean(logits.argmax(-1) == y)
    mean, error = R.mean(0), R.std(0) / len(R) ** 0.5
    print(f"{options.name}: {len(table.features)} features, {len(table.classes)} classes; {right:.1%} of {len(y)} test "
          f"examples right")  # fmt: skip
    order = np.argsort(-mean)
    width = max(map(len, table.features))
    for i in order:
        print(f"  {table.features[i]:{width}}  {mean[i]:8.4f} +- {error[i]:.4f}")
    drawn = order[: options.shown]
    names = {i: table.features[i] for i in drawn}
    figure = Figure(figsize=(7, 0.9 + 0.26 * len(drawn)), layout="constrained")
    ax = plot.bars({names[i]: mean[i] for i in drawn}, figure.subplots(), {names[i]: 1.96 * error[i] for i in drawn})
    ax.set_xlabel("mean relevance of the true class, with 95 % confidence")
    shown = "" if len(drawn) == len(order) else f"; {len(drawn)} of {len(order)} features"
    ax.set_title(f"{options.name}: {options.rule}, {right:.1%} of {len(y)} test examples right{shown}", fontsize=10)
    save_figure(figure, file)
    return 0
