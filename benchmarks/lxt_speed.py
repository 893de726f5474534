"""Compares the time and the memory of AttnLRP with LXT, on a Llama with the shape of SmolLM2-135M.

    python benchmarks/lxt_speed.py

It needs torch, transformers and LXT, as benchmarks/lxt_reference.py. Both libraries have the same random weights, in
float32, explain the same embeddings, and run alternately in one process. The ratio is the median of the ratios of
neighbouring calls. The memory is the largest one of a process of its own during its second explanation, minus that
before the first one.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TOKENS = (64, 128, 256, 512, 1024)
TARGET = 7


def by_lxt(folder: Path):
    """A function from embeddings (1, tokens, width) to the relevance of the tokens, by LXT."""
    import torch
    from lxt.efficient import monkey_patch

    module = importlib.import_module("transformers.models.llama.modeling_llama")
    monkey_patch(module, importlib.import_module("lxt.efficient.models.llama").attnLRP)
    model = module.LlamaForCausalLM.from_pretrained(folder).eval()
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad = False

    def explain(x):
        x = torch.from_numpy(x).requires_grad_()
        model(inputs_embeds=x, logits_to_keep=1).logits[0, -1, TARGET].backward()
        return (x * x.grad).sum(-1)[0].numpy(force=True)

    return explain


def by_lrp_jax(folder: Path, **options):
    """The same by lrp_jax."""
    import lrp_jax
    from lrp_jax.models import llama

    model = llama.load(folder)
    explain = lrp_jax.lrp(model.logits, lrp_jax.composites.lxt.attn_lrp(), argnums=1, **options)
    return lambda x: np.asarray(explain(model.params, x, target=TARGET).sum(-1))[0]


def save_model(folder: Path) -> None:
    """Writes a model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)


def embeddings(tokens: int) -> np.ndarray:
    """Random embeddings (1, tokens, width)."""
    return np.random.default_rng(tokens).normal(0, 0.02, (1, tokens, SHAPE["hidden_size"])).astype(np.float32)


def memory(folder: Path, library: str, tokens: int) -> float:
    """How much more memory a process of its own needs to explain, in MB."""
    command = [sys.executable, __file__, "--memory", str(folder), library, str(tokens)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def own_memory(folder: Path, library: str, tokens: int) -> float:
    """The same, of this process."""
    makers = {"lxt": by_lxt, "lrp_jax": by_lrp_jax, "lrp_jax, remat": lambda f: by_lrp_jax(f, remat=True)}
    status = lambda key: int(re.findall(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1e3
    explain = makers[library](folder)
    explain(embeddings(8))
    before = status("VmRSS")
    explain(embeddings(tokens))  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    explain(embeddings(tokens))
    return status("VmHWM") - before


def table(folder: Path, rounds: int):
    """The lines of the table."""
    calls = {"lxt": by_lxt(folder), "lrp_jax": by_lrp_jax(folder)}
    yield "| tokens | LXT, s | lrp_jax, s | LXT / lrp_jax | LXT, MB | lrp_jax, MB | with `remat`, MB | difference |"
    yield "|---|---|---|---|---|---|---|---|"
    for tokens in TOKENS:
        x = embeddings(tokens)
        first, second = (call(x) for call in calls.values())  # compiles
        seconds = []
        for _ in range(rounds):
            start = [time.perf_counter()]
            for call in calls.values():
                call(x)
                start.append(time.perf_counter())
            seconds.append(np.diff(start))
        times = np.array(seconds)
        used = [memory(folder, library, tokens) for library in ("lxt", "lrp_jax", "lrp_jax, remat")]
        cells = [
            f"{tokens:,}", *(f"{s:.2f}" for s in np.median(times, 0)), f"{np.median(times[:, 0] / times[:, 1]):.2f}",
            *(f"{u:,.0f}" for u in used), f"{np.abs(first - second).max() / np.abs(first).max():.0e}",
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        folder, library, tokens = options.memory
        print(own_memory(Path(folder), library, int(tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for line in table(Path(folder), options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
