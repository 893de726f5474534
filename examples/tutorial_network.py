"""A network of three dense layers with a sigmoid at its end, explained: relevance at every layer, and the ledger.

python examples/tutorial_network.py [FILE.safetensors]

The weights are random. They are saved to the file and read again.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

import lrp_jax
from lrp_jax import composites, outputs, rules, weights
from lrp_jax.composites import kind


class Network(nn.Module):
    """10 inputs, 32 and 16 hidden units, one output between 0 and 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Probabilities (N, 1) of inputs (N, 10)."""
        x = nn.relu(nn.Dense(32, name="fc1")(x))
        x = nn.relu(nn.Dense(16, name="fc2")(x))
        return nn.sigmoid(nn.Dense(1, name="fc3")(x))


def main(file: Path) -> None:
    """Saves and loads weights, and explains a batch of five samples."""
    network = Network()
    x = jax.random.normal(jax.random.key(1), (5, 10))
    weights.save(file, network.init(jax.random.key(0), x)["params"])
    params = weights.load(file)
    apply = lambda params, x: network.apply({"params": params}, x)

    # The network returns probabilities. Relevance starts from the logit before them, or from the probability itself.
    for name, output in (("logit", outputs.sigmoid_logit), ("probability", lambda p, target: p)):
        print(f"relevance of the {name}")
        explain = lrp_jax.lrp(apply, composites.epsilon_plus(), output=output, layers=True, logits=True)
        relevance, layers, probability = explain(params, x, target=0)
        for layer, R in layers.items():
            print(f"  {layer:12} {R.shape!s:8} sums {np.asarray(R.sum(-1)).round(4)}")
        print(f"  probabilities {np.asarray(probability[:, 0]).round(4)}")
        print(f"  the inputs of the first sample {np.asarray(relevance[0]).round(3)}\n")

    print("the ledger of LRP-0")
    conservation = lrp_jax.conservation(apply, [(kind("dense"), rules.Zero())], output=outputs.sigmoid_logit)
    print(conservation(params, x, target=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("tutorial_network.safetensors"))
