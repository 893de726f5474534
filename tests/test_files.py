"""Files are written completely or not at all, also if the process is ended at any moment."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import CASTLE, run

from lrp_jax import plot, weights
from lrp_jax.files import writing

# A process that writes files slowly: it stops for a moment after each block.
SLOW_WRITER = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and shells ignore Ctrl-C of jobs in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
from lrp_jax.files import writing
print("ready", flush=True)
with writing(*sys.argv[1:], make_folders=True) as parts:
    for part in parts:
        with open(part, "wb") as file:
            for _ in range(1000):
                file.write(b"x" * 1000)
                file.flush()
                time.sleep(0.005)
"""


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    file = tmp_path / "new" / "folder" / "a.txt"
    with writing(file, make_folders=True) as (part,):
        part.write_text("whole")
        assert part.suffix == ".txt"
        assert part.name[0] == "."
        assert not file.exists()
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]
    assert file.read_text() == "whole"


def test_after_an_error_nothing_is_left(tmp_path):
    old = tmp_path / "old.txt"
    old.write_text("before")
    new = tmp_path / "deep" / "er" / "new.txt"

    def interrupted():
        with writing(old, new, make_folders=True) as parts:
            for part in parts:
                part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
    assert old.read_text() == "before"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"

    def write():
        with writing(file, overwrite=False) as (part,):
            part.write_text("ours")
            file.write_text("the user's")

    with pytest.raises(FileExistsError):
        write()
    file.unlink()
    no_links = lambda *_: (_ for _ in ()).throw(PermissionError())
    monkeypatch.setattr(os, "link", no_links)  # a file system without hard links
    with pytest.raises(FileExistsError):
        write()
    assert file.read_text() == "the user's"
    assert len(list(tmp_path.iterdir())) == 1


def test_links_devices_and_permissions_stay_what_they_are(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    with writing(link, "/dev/null") as (part, device):
        part.write_text("after")
        device.write_text("lost")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_all_writers_leave_the_old_file_if_they_fail(tmp_path, monkeypatch):
    figure = plot.table([[plot.Cell(Image.new("RGB", (4, 4)))]])
    for name, write in {
        "a.png": lambda file: plot.save(figure, file),
        "a.svg": lambda file: plot.save(figure, file),
        "a.safetensors": lambda file: weights.save(file, {"a": np.ones(3)}),
    }.items():
        file = tmp_path / name
        write(file)
        whole = file.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                write(file)
        assert file.read_bytes() == whole
        file.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_remove_the_temporary_files(number, tmp_path):
    files = [tmp_path / "out" / "a.npz", tmp_path / "out" / "b.png"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, *map(str, files)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "out").exists():
        time.sleep(0.001)
    time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(10) not in (0, -signal.SIGTERM)
    process.stdout.close()
    assert not list(tmp_path.iterdir())


def complete(file: Path) -> bool:
    """Whether a file can be read to its end."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            image.load()
    elif file.suffix == ".npz":
        with np.load(file) as arrays:
            [arrays[name] for name in arrays]
    elif file.suffix == ".html":
        return file.read_text().rstrip().endswith("</html>")
    return True


def killed(arguments: list[str], folder: Path, rng: random.Random, longest: float) -> tuple[bool, bool]:
    """Ends a command at a random moment. Returns whether it was ended, and whether it left a temporary file.

    Asserts that each file under its final name is complete, and that all or none of the files are there.
    """
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    command = [sys.executable, "-m", "lrp_jax", *arguments, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if rng.random() < 0.5:  # at any moment
        wait = rng.uniform(0, longest)
    else:  # while files are written
        while process.poll() is None and not list(folder.glob(".lrp_jax-*")):
            time.sleep(0.001)
        wait = rng.uniform(0, 0.3)
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    ended = process.wait(60) != 0
    found = [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    final = [p for p in found if not p.name.startswith(".lrp_jax-")]
    assert all(map(complete, final)), final
    assert number == signal.SIGKILL or len(final) == len(found)
    return ended, len(final) < len(found)


def test_two_killed_runs_leave_no_incomplete_file(tmp_path):
    digit = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(digit)
    rng = random.Random(0)
    for i in range(2):
        killed(["explain", str(digit), "--model", "mnist_cnn", "--npz"], tmp_path / str(i), rng, 3.0)


@pytest.mark.slow
def test_many_killed_runs_leave_no_incomplete_file(tmp_path):
    """LRP_JAX_KILLS sets the number of runs."""
    digit = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(digit)
    rng, count, times = random.Random(1), int(os.environ.get("LRP_JAX_KILLS", "6")), []
    commands = {
        "explain": ["explain", str(digit), "--model", "mnist_cnn", "--npz", "--map"],
        "gallery": ["gallery", str(digit), "--model", "mnist_cnn"],
    }
    for name, command in commands.items():  # also fills the compilation cache
        start = 0.0
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "lrp_jax", *command, "--out", str(tmp_path / name), "--overwrite"],
                           check=True, capture_output=True)  # fmt: skip
        times.append(time.perf_counter() - start)
    ended = left = 0
    for i in range(count):
        k = i % 2
        was_ended, has_part = killed([*commands.values()][k], tmp_path / f"run{i}", rng, times[k] * 1.02)
        ended, left = ended + was_ended, left + has_part
    print(f"{count} runs, {ended} ended early, none left an incomplete file; {left} left a temporary file (SIGKILL)")
    assert ended


def test_refused_runs_leave_no_folder(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for arguments in (
        ("explain", tmp_path / "broken.png"),
        ("explain", CASTLE, "--model", "vgg61"),
        ("gallery", tmp_path / "broken.png"),
        ("mnist", "rules", "--count", 10**6),
        ("compare", CASTLE, "--show", "nothing"),
    ):
        code, _, err = run(capsys, *arguments, "--out", tmp_path / "out")
        assert code == 2, err
        assert not (tmp_path / "out").exists()


def test_the_folder_is_checked_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    code, out, err = run(capsys, "explain", CASTLE, "--out", tmp_path / "file" / "folder")
    assert (code, out) == (2, "")
    assert "cannot be made (Not a directory)" in err


def test_ctrl_c_while_jax_is_imported_ends_quietly():
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from lrp_jax_command import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CASTLE.parents[1])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_records_are_json(tmp_path, capsys):
    digit = tmp_path / "digit.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(digit)
    code, out, _ = run(capsys, "explain", digit, "--model", "mnist_cnn", "--json", "--out", tmp_path)
    assert code == 0
    assert json.loads(out)[0]["known_classes"] == 10
