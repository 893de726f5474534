"""Measures of explanations by Quantus, for comparison with `lrp_jax.evaluation`.

`python benchmarks/quantus_reference.py` writes tests/quantus_reference.json. It needs torch and Quantus; the file was
written with torch 2.13.0 and Quantus 0.6.0. Both libraries get the same network, inputs, maps and random numbers, from
tests/quantus_cases.py.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import quantus
import torch
from quantus.functions.perturb_func import batch_uniform_noise

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import quantus_cases as cases  # noqa: E402

SOURCE = (
    "Measures that Quantus 0.6.0 computed for random numbers (benchmarks/quantus_reference.py). Quantus, Copyright (c)"
    " 2021 the Quantus authors, GNU Lesser General Public License 3: github.com/understandable-machine-intelligence"
    "-lab/Quantus. This file contains numbers only, and none of its code."
)
REFERENCE = ROOT / "tests" / "quantus_reference.json"


class Dense(torch.nn.Linear):
    """A layer whose random parameters are those of `cases.params(100)`."""

    def __init__(self, name):
        self.name = name
        super().__init__(*cases.SIZES[name])

    def reset_parameters(self):
        self.read(cases.params(100))

    def read(self, params):
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(params[self.name]["kernel"].T))
            self.bias.copy_(torch.from_numpy(params[self.name]["bias"]))


def network():
    """The network of `cases`."""
    layers = [Dense(name).double() for name in cases.SIZES]
    for layer in layers:
        layer.read(cases.params())
    between = [module for layer in layers for module in (layer, torch.nn.ReLU())][:-1]
    return torch.nn.Sequential(torch.nn.Flatten(), *between).eval()


def gradient_times_input(model, inputs, targets, **_):
    """The maps of the measures that explain."""
    x = torch.as_tensor(np.asarray(inputs)).double().requires_grad_()
    model(x)[range(len(x)), torch.as_tensor(np.asarray(targets))].sum().backward()
    return (x * x.grad).detach().numpy()


def random_numbers(seed):
    """The random functions that Quantus calls start with this seed."""
    rng = np.random.RandomState(seed)
    np.random.choice, np.random.uniform, np.random.seed = rng.choice, rng.uniform, lambda *_: None


def measures():
    """The measures of Quantus by name."""
    plain = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    absolute, zero = plain | {"abs": True}, {"perturb_baseline": 0.0}
    found = {
        "pixel_flipping": quantus.PixelFlipping(features_in_step=9, **plain, **zero),
        "region_morf": quantus.RegionPerturbation(patch_size=cases.PATCH, order="morf", **plain, **zero),
        "region_lerf": quantus.RegionPerturbation(patch_size=cases.PATCH, order="lerf", **plain, **zero),
        "gini": quantus.Sparseness(**absolute),
        "entropy": quantus.Complexity(**absolute),
        "effective_complexity": quantus.EffectiveComplexity(eps=0.2, **(absolute | {"normalise": True})),
        "pointing_game": quantus.PointingGame(**plain),
        "mass_absolute": quantus.AttributionLocalisation(**absolute),
        "mass_signed": quantus.RelevanceMassAccuracy(**plain),
        "top_k": quantus.TopKIntersection(k=cases.TOP, **plain),
        "faithfulness_correlation": quantus.FaithfulnessCorrelation(
            nr_runs=cases.RUNS, subset_size=cases.SUBSET, **plain, **zero, return_aggregate=False
        ),
        "infidelity": quantus.Infidelity(perturb_patch_sizes=[3], n_perturb_samples=1, **plain, **zero),
        "non_sensitivity": quantus.NonSensitivity(eps=0.02, **absolute, **zero),
    }
    robust = {"nr_samples": cases.RUNS, **plain}
    found["max_sensitivity"] = quantus.MaxSensitivity(lower_bound=cases.RADIUS, **robust)
    found["mean_sensitivity"] = quantus.AvgSensitivity(lower_bound=cases.RADIUS, **robust)
    found["relative_input_stability"] = quantus.RelativeInputStability(
        perturb_func=batch_uniform_noise,
        perturb_func_kwargs={"lower_bound": cases.RADIUS, "upper_bound": None},
        **robust,
    )
    for order in ("top_down", "bottom_up"):
        for by, function in (("spearman", quantus.correlation_spearman), ("pearson", quantus.correlation_pearson)):
            found[f"mprt_{order}_{by}"] = quantus.MPRT(layer_order=order, similarity_func=function, **absolute)
    return found


def main():
    """Computes and writes all measures."""
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)  # Quantus converts inputs to this type
    x, maps, masks = cases.inputs(), cases.maps(), cases.masks()
    own = ("max_sensitivity", "mean_sensitivity", "relative_input_stability")
    values = {}
    for name, metric in measures().items():
        random_numbers(cases.SEED)
        mapped = None if name in own or name.startswith("mprt") else maps.copy()
        if name in ("pointing_game", "mass_absolute", "mass_signed", "top_k"):
            mapped = maps.sum(1, keepdims=True)
        softmax = not (name.startswith("mprt") or name in ("infidelity", "faithfulness_correlation"))
        result = metric(
            model=network(), x_batch=x.copy(), y_batch=cases.TARGETS, a_batch=mapped, s_batch=masks[:, :1],
            channel_first=True, explain_func=gradient_times_input, softmax=softmax,
        )  # fmt: skip
        if isinstance(result, dict):
            result = [row for layer, row in result.items() if layer != "original"]
        values[name] = np.asarray(result, float).tolist()
        print(f"{name:28} {np.asarray(result, float).ravel()[:4]}")
    rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"source": SOURCE, **values}.items()]
    REFERENCE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
