"""Writes the table of kinds into README.md.

python docs/kinds.py
"""

import re
from pathlib import Path

from lrp_jax.rules import kinds

README = Path(__file__).parents[1] / "README.md"

if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    table = f"<!-- kinds -->\n{kinds.table()}\n<!-- /kinds -->"
    README.write_text(re.sub(r"<!-- kinds -->.*?<!-- /kinds -->", lambda _: table, text, flags=re.DOTALL), "utf-8")
