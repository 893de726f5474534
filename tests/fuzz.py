"""Reads damaged files, answers of faulty servers and random command lines, and reports everything that is not an error.

    python tests/fuzz.py --seconds 600 [--only "png;tiff"] [--save FOLDER]

Hypothesis draws the damage and finds a small case. Each case runs in a process of its own: the result is "read",
"refused" (the documented error), or a failure: another exception, a signal, more than 5 s, or more than 1 GB.
It needs Linux or macOS.
"""

import argparse
import collections
import contextlib
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from fuzz_targets import ARRAYS, Target, targets
from PIL import Image

from lrp_jax import cli, weights
from lrp_jax.weights import _download

SECONDS, BYTES = 5.0, 2**30
"""Limits for a file of less than 1 MB."""

FAILED = ("exception", "signal", "slow", "large", "exit code")


def run(task: Callable[[], str], seconds: float = SECONDS) -> str:
    """Runs a task in a process of its own, and returns its result or how it failed."""
    out, back = os.pipe()
    start = time.monotonic()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            resource.setrlimit(resource.RLIMIT_AS, (16 * BYTES, 16 * BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (int(6 * seconds), int(6 * seconds)))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                result = task()
            except BaseException as error:
                result = f"exception {type(error).__name__}: {error}"
            os.write(back, result.encode("utf-8", "backslashreplace")[:300])
        os._exit(0)
    os.close(back)
    with open(out, "rb") as file:
        result = file.read().decode()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    if usage.ru_utime + usage.ru_stime > seconds:
        return f"slow: {time.monotonic() - start:.1f} s"
    if usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) > BYTES:
        return f"large: {usage.ru_maxrss >> 10} MB"
    return result


NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
)
TOKENS = [
    b"r\xff\xff\xff\x7f", b"q\0", b"h\0", b"b", b"R", b"N", b"0", b"2", b"ccollections\nOrderedDict\n",
    b"(X\1\0\0\0aNub", b"\x8e" + b"\xff" * 6 + b"\0\0", b"\x95" + b"\xff" * 8, b"\x8a\xff" + b"\xff" * 255, b"\x93",
    b"\xdf\xff\xff\xff\xff", b"\xc9\0\0\0\x10\1", b"\xce\xff\xff\xff\xff", b"\x81\xa1a", b"[" * 5000, b'{"a":' * 1000,
    b"NaN", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"\xff\xda" * 50, b"\xff\xd8", b"\r\n", b"\0" * 100,
]  # fmt: skip
"""Opcodes of pickles and msgpack, parts of JSON and HTTP, and markers of JPEG."""

IN_PLACE = ["flip", "byte", "number", "number", "copy"]


def edits(kinds: list[str]) -> st.SearchStrategy[list[Any]]:
    """Edits of these kinds: two positions, a number, its width and its byte order."""
    position = st.integers(0, 2**16 - 1)
    edit = st.tuples(
        st.sampled_from(kinds), position, position, NUMBERS, st.sampled_from("BHIQ"), st.sampled_from("<>")
    )
    return st.lists(edit, min_size=1, max_size=6)


EDITS = edits(IN_PLACE[:1]) | edits(IN_PLACE) | edits([*IN_PLACE, "token"]) | edits([*IN_PLACE, "cut", "repeat", "end"])


def damaged(content: bytes, edits: list[Any]) -> bytes:
    """The content after these edits. Positions are given as shares of 2**16."""
    data = bytearray(content)
    for kind, a, b, number, width, order in edits:
        i, j = a * len(data) >> 16, b * len(data) >> 16
        if not data:
            break
        if kind == "flip":
            data[i] ^= 1 << b % 8
        elif kind == "byte":
            data[i] = b % 256
        elif kind == "number":
            packed = struct.pack(f"{order}{width}", number % 2 ** (8 * struct.calcsize(width)))
            data[i : i + len(packed)] = packed
        elif kind == "cut":
            del data[i : i + b % 64 + 1]
        elif kind == "repeat":
            data[i:i] = data[i : i + b % 64 + 1] * (a % 50 + 1)
        elif kind == "token":
            data[i : i + len(TOKENS[b % len(TOKENS)]) * (b >> 15)] = TOKENS[b % len(TOKENS)]
        elif kind == "copy":
            data[i : i + b % 32] = data[j : j + b % 32]
        elif kind == "end":
            del data[max(i, len(data) // 2) :]
    return bytes(data[: 10**6])


def read_case(target: Target, content: bytes, folder: Path) -> str:
    """Reads a damaged content."""

    def task():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = Path(own) / "file"
            path.write_bytes(target.pack(content))
            try:
                target.read(path)
            except target.errors as error:
                return "refused" if len(str(error)) < 2000 else "exception with a message of 2000 characters"
            return "read"

    return run(task)


VALUES = [
    "", ".", "..", "/", "-1", "0", "1", "2", "3.5", "9" * 30, "nan", "inf", "-inf", "1e999", "\udcff\udcfe", "a" * 300,
    "/dev/full", "/dev/zero", "pipe", "folder", "image.png", "\udcff.png", "broken.png", "w.safetensors", "mnist_cnn",
    "mnist_dnn", "epsilon_plus", "conv2", "gradient", "$\\frac{$", "a\nb\x1b[0m", "--", "%s", "\u0663", "png", "iris",
    "positive", "both", "missing/a",
]  # fmt: skip


def option_strings(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[str]]:
    """All options of each command."""
    found = {words: [o for action in parser._actions for o in action.option_strings]} if words else {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= option_strings(child, (*words, name))
    return found


def command_lines() -> st.SearchStrategy[list[str]]:
    """Random command lines with existing commands and options."""

    def of_command(item):
        words, options = item
        value = st.sampled_from(VALUES)
        option = st.tuples(st.sampled_from(options), value).map(list) | st.sampled_from(options).map(lambda o: [o])
        parts = st.lists(option | value.map(lambda v: [v]), max_size=6).map(lambda parts: [*chain.from_iterable(parts)])
        return st.tuples(st.sampled_from([["image.png"], [], ["image.png", "\udcff.png"]]), parts).map(
            lambda drawn: [*words, *drawn[0], "--model", "mnist_cnn", *drawn[1]]
        )

    return st.sampled_from(sorted(option_strings(cli._parser()).items())).flatmap(of_command)


def command_folder(folder: Path) -> None:
    """Writes the files that `VALUES` names."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    for name in ("image.png", "\udcff.png"):
        image.save(folder / name, format="PNG")
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:100])
    weights.save(folder / "w.safetensors", ARRAYS)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")


def command_case(arguments: list[str], folder: Path) -> str:
    """Calls the command. It must end with a documented exit code."""

    def task():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            command_folder(Path(own))
            os.chdir(own)
            os.environ.update(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", XDG_CACHE_HOME=own)
            _download._WAIT = 0.0
            try:
                code = cli.main(arguments)
            except SystemExit as stop:  # argparse
                code = stop.code
            return {0: "read", 2: "refused"}.get(code, f"exit code {code}")

    return run(task, seconds=60)


def fuzz(
    only: list[str], seconds: float, seed: int, save: Path | None = None, cases: int = 50
) -> dict[str, collections.Counter]:
    """Draws cases of all targets in turn until the time is over, each target at least once.

    Returns the number of each result by target.
    """
    results: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    known: dict[str, Target | None] = {**targets(), "command line": None}
    chosen = {name: target for name, target in known.items() if not only or name in only}
    end, lines = time.monotonic() + seconds, command_lines()
    with tempfile.TemporaryDirectory() as folder:
        while not results or time.monotonic() < end:
            for name, target in chosen.items():
                seed += 1
                size = max(cases // 10, 1) if target is None or name.startswith("keras") else cases
                _draw(name, target, lines, Path(folder), seed, size, results[name], save)
    return dict(results)


def _draw(name, target, lines, folder, seed, size, counter, save) -> None:
    """Draws some cases of one target. After a failure, Hypothesis finds a smaller one, which is saved and printed."""
    smallest: list[Any] = []
    cases = lines if target is None else st.tuples(st.sampled_from(target.seeds), EDITS)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=size, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )  # fmt: skip
    @hypothesis.given(cases)
    def check(case):
        content = case if target is None else damaged(*case)
        result = command_case(content, folder) if target is None else read_case(target, content, folder)
        failed = result.startswith(FAILED)
        if not smallest:
            counter[result if failed else result.split(":")[0]] += 1
        if failed:
            smallest[:] = [result, content]
            raise AssertionError(result)

    with contextlib.suppress(AssertionError, hypothesis.errors.Flaky, ExceptionGroup):
        check()
    if smallest:
        result, content = smallest
        print(f"{name}: {result}\n  {content!r:.500}", file=sys.stderr, flush=True)
        if save and target:
            save.mkdir(parents=True, exist_ok=True)
            (save / f"{name.replace(' ', '_')}_{seed}").write_bytes(target.pack(content))


def failures(results: dict[str, collections.Counter]) -> list[str]:
    """The results that are failures."""
    return [f"{name}: {result}" for name, counter in results.items() for result in counter if result.startswith(FAILED)]


def main() -> int:
    """Prints the results as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--only", type=lambda text: text.split(";"), default=[], help="names of targets, with ; between"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--cases", type=int, default=50, help="number of cases of a target before the next target")
    parser.add_argument("--save", type=Path, help="folder for the smallest cases that fail")
    options = parser.parse_args()
    results = fuzz(options.only, options.seconds, options.seed, options.save, options.cases)
    print("| reader | cases | read | refused | failed |\n|---|---:|---:|---:|---:|")
    for name, counter in results.items():
        bad = sum(n for result, n in counter.items() if result.startswith(FAILED))
        print(f"| {name} | {counter.total()} | {counter['read']} | {counter['refused']} | {bad} |")
    print("\n".join(failures(results)), file=sys.stderr)
    return bool(failures(results))


if __name__ == "__main__":
    sys.exit(main())
