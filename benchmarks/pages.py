"""Writes what a benchmark measured into a page of the documentation."""

from collections.abc import Iterable
from pathlib import Path


def write_between(page: Path, script: str, lines: Iterable[str]) -> None:
    """Replaces what stands between the marks of a script, which are comments with its name.

    Raises:
        SystemExit: the page does not contain both marks, in order.
    """
    begin, end = f"<!-- benchmarks/{script} -->", f"<!-- end of benchmarks/{script} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{page} must contain {begin} and, after it, {end}.")
    page.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}", encoding="utf-8")
