"""Compares the time of pixel flipping and of the model parameter randomisation test with Quantus.

    python benchmarks/quantus_speed.py

It needs torch and Quantus 0.6. Both libraries get the same small convolutional network, in float32, the same images and
maps, the same random parameters, and run alternately in one process. Each ratio is the median of the ratios of
neighbouring calls. Maps are gradient x input, by each library's own automatic differentiation.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import quantus
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from lrp_jax import evaluation, methods  # noqa: E402

SHAPES = {"conv1": (8, 1, 5, 5), "conv2": (16, 8, 5, 5), "fc1": (64, 16 * 16), "fc2": (10, 64)}
SIDE, STEP = 28, 28


def weights(seed):
    """Kernels in the layout of torch, and biases."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            (rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32),
            (0.1 * rng.normal(size=shape[0])).astype(np.float32),
        )
        for name, shape in SHAPES.items()
    }


def _layer(name):
    """A layer of torch whose random parameters are those of `weights(1)`."""
    kind = torch.nn.Conv2d if name.startswith("conv") else torch.nn.Linear
    shape = SHAPES[name]

    class Layer(kind):
        def reset_parameters(self):
            self.read(weights(1)[name])

        def read(self, values):
            with torch.no_grad():
                self.weight.copy_(torch.from_numpy(values[0]))
                self.bias.copy_(torch.from_numpy(values[1]))

    layer = Layer(shape[1], shape[0], *shape[2:3])
    layer.read(weights(0)[name])
    return layer


def torch_network():
    """The network in torch."""
    nn = torch.nn
    return nn.Sequential(
        _layer("conv1"), nn.ReLU(), nn.MaxPool2d(2), _layer("conv2"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        _layer("fc1"), nn.ReLU(), _layer("fc2"),
    ).eval()  # fmt: skip


def jax_network(params, x):
    """The same network in JAX, for images (N, 28, 28, 1)."""
    for name, (kernel, bias) in params.items():
        if name.startswith("conv"):
            layout = ("NHWC", "OIHW", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias
            x = jax.nn.relu(x)
            x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        else:
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1) if x.ndim == 4 else jax.nn.relu(x)
            x = x @ kernel.T + bias
    return x


def torch_maps(model, inputs, targets, **_):
    """Gradient x input by torch."""
    x = torch.as_tensor(np.asarray(inputs)).float().requires_grad_()
    model(x)[range(len(x)), torch.as_tensor(np.asarray(targets))].sum().backward()
    return (x * x.grad).detach().numpy()


def tasks(count, batch):
    """By name: the measure by Quantus, and by lrp_jax."""
    x = np.random.default_rng(2).normal(size=(count, SIDE, SIDE, 1)).astype(np.float32)
    params, model, first = weights(0), torch_network(), x.transpose(0, 3, 1, 2).copy()
    targets = np.asarray(jax_network(params, x)).argmax(-1)
    maps = np.asarray(methods.gradient_times_input(jax_network)(params, x, target=targets))
    plain = {"normalise": False, "disable_warnings": True, "display_progressbar": False}
    call = {"model": model, "x_batch": first, "y_batch": targets, "channel_first": True, "batch_size": batch}

    flipping = quantus.PixelFlipping(features_in_step=STEP, perturb_baseline=0.0, abs=False, **plain)
    remove = evaluation.remove(jax_network, removed=range(STEP, SIDE**2 + 1, STEP), batch_size=batch)
    test = quantus.MPRT(similarity_func=quantus.correlation_spearman, abs=True, **plain)
    randomize = evaluation.randomize_parameters(
        jax_network, methods.gradient_times_input(jax_network), random=weights(1)
    )

    def flip_quantus():
        return np.asarray(flipping(a_batch=maps.transpose(0, 3, 1, 2), softmax=True, device="cpu", **call))

    def flip_lrp_jax():
        return remove(params, x, relevance=maps, target=targets).curve()[1:].T

    def randomize_quantus():
        rows = test(a_batch=None, explain_func=torch_maps, device="cpu", **call)
        return np.asarray([row for name, row in rows.items() if name != "original"])

    def randomize_lrp_jax():
        return randomize(params, x, target=targets).similarity

    return {
        f"pixel flipping, {count} images": (flip_quantus, flip_lrp_jax),
        f"randomisation, {count} images": (randomize_quantus, randomize_lrp_jax),
    }


def timed(function):
    """Seconds and result of one call."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def main():
    """Prints the table of docs/evaluation.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    print("| measure | Quantus | lrp_jax | ratio | largest difference |\n|---|---|---|---|---|")
    for count in options.counts:
        for name, (theirs, ours) in tasks(count, options.batch).items():
            difference = np.abs(theirs() - ours()).max()
            times = np.array([[timed(theirs)[0], timed(ours)[0]] for _ in range(options.repeats)])
            a, b = np.median(times, 0) * 1000
            ratio = np.median(times[:, 0] / times[:, 1])
            print(f"| {name} | {a:.1f} ms | {b:.1f} ms | {ratio:.1f} | {difference:.0e} |")


if __name__ == "__main__":
    main()
