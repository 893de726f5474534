"""Command lines that name nothing readable or writable: one sentence, a documented exit code, no traceback."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import run

import lrp_jax
import lrp_jax_command
from lrp_jax import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with an image, a pipe and a folder."""
    digit = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    for name in ("a.png", "\udcff.png", "$\\frac{$.png", "a\nb.png", "x" * 250 + ".png"):
        digit.save(tmp_path / name, format="PNG")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ("--model", "mnist_cnn")
LONG = "y" * 300

REFUSED = [
    (["explain", "", *MODEL], "expected the name of a file or a folder; got ''"),
    (["explain", ".", *MODEL], r"\.: is a folder"),
    (["explain", "..", *MODEL], r"\.\.: is a folder"),
    (["explain", "/", *MODEL], "/: is a folder"),
    (["check", "folder", *MODEL], "folder: is a folder"),
    (["explain", "pipe", *MODEL], "pipe: cannot be read .a pipe or a device"),
    (["layers", "/dev/zero", *MODEL], "/dev/zero: cannot be read .a pipe or a device"),
    (["explain", f"{LONG}.png", *MODEL], "cannot be read .File name too long"),
    (["gallery", LONG, *MODEL], "File name too long"),
    (["compare", "\udcfe.png", *MODEL], r"\\udcfe.png: no such file"),
    (["explain", "a.png", *MODEL, "--weights", "pipe"], "pipe: cannot be read .a pipe or a device"),
    (["explain", "a.png", *MODEL, "--weights", ""], "expected the name of a file"),
    (["explain", "a.png", *MODEL, "--weights", "folder"], "folder: Is a directory"),
    (["explain", "a.png", *MODEL, "--out", ""], "expected the name of a file"),
    (["explain", "a.png", *MODEL, "--out", "/dev/full"], "the folder /dev/full cannot be made"),
    (["explain", "a.png", *MODEL, "--out", LONG], "File name too long"),
    (["explain", "a.png", *MODEL, "--composite", ""], "no composite ''"),
    (["explain", "a.png", *MODEL, "--target", ""], "'' is not a class"),
    (["explain", "a.png", *MODEL, "--top", "9" * 6000], "1 or more, below 10 million"),
    (["explain", "a.png", *MODEL, "--top", "101"], "a figure shows at most 100; got 101"),
    (["explain", "a.png", *MODEL, "--top", "nan"], "expected a whole number"),
    (["explain", "a.png", *MODEL, "--percentile", "nan"], "above 0, at most 100; got 'nan'"),
    (["explain", "a.png", *MODEL, "--width", "-5"], "expected a whole number from 100"),
    (["compare", "a.png", *MODEL, "--show", ""], "no explainer ''"),
    (["batch", "pipe", *MODEL, "--out", "s"], "pipe: cannot be read .a pipe or a device"),
    (["batch", "/dev/zero", *MODEL, "--out", "s"], "/dev/zero: cannot be read .a pipe or a device"),
    (["batch", LONG, *MODEL, "--out", "s"], "File name too long"),
    (["batch", "a.png", *MODEL, "--out", "s"], "a.png: cannot be read"),
    (["batch", "folder", *MODEL, "--out", "s"], "folder: no images to explain"),
    (["batch", ".", *MODEL, "--out", ""], "expected the name of a file"),
    (["batch", ".", *MODEL, "--out", "/dev/full"], "/dev/full exists and is no store of lrp_jax"),
    (["batch", ".", *MODEL, "--out", "/dev/full/s"], "the store /dev/full/s cannot be made"),
    (["batch", ".", *MODEL, "--out", LONG], "File name too long"),
    (["report", "folder"], "folder is no store of lrp_jax"),
    (["report", "pipe"], "pipe is no store of lrp_jax"),
    (["weights", "convert", "pipe", "w.safetensors", *MODEL], "pipe: cannot be read"),
    (["weights", "convert", "a.png", f"{LONG}.safetensors", *MODEL], "File name too long"),
    (["mnist", "rules", "--shown", "500"], "a figure shows at most 100; got 500"),
    (["table", "iris", "--hidden", "999999", "999999"], "--hidden makes .* weights; expected at most"),
    (["text", "\udcff", "--against", "a"], "is not valid Unicode|no weights of all-MiniLM"),
    (["text", "a", "--against", "b", "--html", LONG], "File name too long"),
    (["text", "a", "--against", "b", "--weights", "pipe"], "pipe/config.json: "),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_arguments_that_cannot_be_used_are_one_error_and_exit_code_2(arguments, message, capsys):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert re.search(message, err), err
    assert len(err.splitlines()[-1]) < 1200


def test_names_with_any_characters_are_explained(folder, capsys):
    images = ["\udcff.png", "$\\frac{$.png", "a\nb.png"]
    code, out, err = run(capsys, "explain", *images, *MODEL, "--out", "out")
    assert (code, err) == (0, "")
    assert "\\udcff.png" in out
    assert len(list((folder / "out").iterdir())) == 3
    for command in ("check", "gallery"):
        assert run(capsys, command, *images, *MODEL, "--out", "out")[0] == 0


def test_a_name_that_is_too_long_for_the_result_does_not_stop_the_others(folder, capsys):
    code, out, err = run(capsys, "explain", "x" * 250 + ".png", "a.png", *MODEL, "--out", "out")
    assert code == 2
    assert "the result cannot be written (File name too long)" in err
    assert "out/a_lrp.png" in out


def shell(command):
    """Exit code and standard error of a command of bash, where `lrp` calls the program."""
    program = f'lrp() {{ {sys.executable} -m lrp_jax --no-cache "$@"; }}; set -o pipefail; {command}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("lrp models > /dev/full", 2, "standard output: No space left on device"),
        ("lrp --help > /dev/full", 2, "standard output: No space left on device"),
        ("lrp models >&-", 0, ""),
        ("lrp explain missing.png 2> /dev/full", 2, ""),
        ("lrp explain missing.png 2>&-", 2, ""),
        ("lrp models | true", 1, ""),
        ("PYTHONUNBUFFERED=1 lrp check a.png a.png --model mnist_cnn --overwrite | head -1", 1, ""),
        ("lrp --help", 0, ""),
    ],
)
def test_exit_codes_are_those_of_the_help(command, code, message):
    found, err = shell(command)
    assert (found, "Traceback" in err) == (code, False)
    assert message in err
    assert f"{code}: " in cli.EXIT_CODES


def test_an_interrupt_and_too_little_memory_have_their_exit_codes(monkeypatch, capsys):
    for error, code in ((KeyboardInterrupt, 130), (MemoryError, 2)):

        def interrupted(_, error=error):
            raise error

        monkeypatch.setattr(cli._weights, "_models", interrupted)
        assert run(capsys, "models")[0] == code
        assert f"{code}: " in cli.EXIT_CODES


PROGRAMS = {"script": ["-c", "import sys, lrp_jax_command; sys.exit(lrp_jax_command.main())"], "-m": ["-m", "lrp_jax"]}
INTERRUPTED_COLLECTION = """
import gc, os, time
def main():
    gc.callbacks.append(lambda *_: os.kill(os.getpid(), 2))
    gc.collect()
    gc.callbacks.pop()
    for _ in range(900):
        time.sleep(0.01)
"""
INTERRUPT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"


@pytest.fixture
def interruptible():
    """New processes receive Ctrl-C, also if the tests run in the background, where shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("module", "content"),
    [
        ("jax/__init__.py", INTERRUPT),
        ("jax/__init__.py", f"try: {INTERRUPT}\nexcept: pass"),
        ("lrp_jax/cli.py", INTERRUPT),
        ("lrp_jax/cli.py", f"def main(): {INTERRUPT}"),
        ("lrp_jax/cli.py", INTERRUPTED_COLLECTION),
        ("lrp_jax/cli.py", "import atexit, os, signal; atexit.register(os.kill, os.getpid(), 2); main = lambda: 0"),
    ],
    ids=[
        "while JAX is imported",
        "where exceptions are ignored",
        "in imports",
        "in the command",
        "in a callback",
        "at exit",
    ],
)
def test_an_interrupt_at_any_time_has_no_traceback(program, module, content, tmp_path):
    """While JAX is imported, in the command, and at exit: a module that interrupts itself replaces the real one."""
    (tmp_path / module).parent.mkdir()
    (tmp_path / module).write_text(content)
    if module.startswith("lrp_jax"):
        (tmp_path / "lrp_jax/__init__.py").write_text("")
        (tmp_path / "lrp_jax/__main__.py").write_text(Path(lrp_jax.__file__).with_name("__main__.py").read_text())
    path = os.pathsep.join([str(tmp_path), str(Path(lrp_jax_command.__file__).parent)])
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program]], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda: 0)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert lrp_jax_command.main() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
