"""Some random damage to each input; `python tests/fuzz.py` draws more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case needs a process of its own")
def test_damaged_files_answers_and_arguments_cause_only_documented_errors():
    """LRP_JAX_FUZZ_SECONDS sets the time."""
    seconds = os.environ.get("LRP_JAX_FUZZ_SECONDS", "10")
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, "-W", "ignore", str(script), "--seconds", seconds, "--seed", "0", "--cases", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 0 |\n") > 30  # readers without a failure
