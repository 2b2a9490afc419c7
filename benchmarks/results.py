"""`RESULTS.md`: each measurement owns a section, which it writes anew."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = "# Results\n\nEvery section is written by the command it names.\n"


def write_section(title: str, command: str, text: str) -> None:
    """Replace the section of that title, or add it; the rest of the file stays."""
    content = RESULTS.read_text() if RESULTS.exists() else HEAD
    section = f"## {title}\n\n`{command}`. {machine()}.\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    parts = [pattern.sub("", content).rstrip(), section.rstrip()]
    RESULTS.write_text("\n\n".join(parts) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """Where it was measured."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)
