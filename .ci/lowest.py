"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

python .ci/lowest.py EXTRA...
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lowest(extra: str | None = None) -> dict[str, str]:
    """From the name of a package to its lowest version, for the dependencies or for an extra and all that it names."""
    found: dict[str, str] = {}
    for requirement in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        if extras := re.fullmatch(rf"{PROJECT['name']}\[(.*)\]", requirement):
            for name in extras[1].split(","):
                found |= lowest(name)
        else:
            name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement).groups()
            found[name] = version
    return found


if __name__ == "__main__":
    pins = lowest()
    for extra in sys.argv[1:]:
        pins |= lowest(extra)
    print("\n".join(f"{name}=={version}" for name, version in pins.items()))
