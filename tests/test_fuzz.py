"""A minute of random damage; `python tests/fuzz.py` runs it for longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case needs a process of its own")
def test_damaged_files_answers_and_arguments_cause_only_documented_errors():
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, "-W", "ignore", str(script), "--seconds", "60", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 0 |\n") > 30  # readers without a failure
