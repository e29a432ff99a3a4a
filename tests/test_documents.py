"""What the documents show and say of the code: the README's snippets run, and CONTRIBUTING names every file once."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import import_torch, run_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BUILT = ("_engine.c", "_engine.html", "*.so", "__pycache__")


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted into a fresh interpreter."""
    if "import torch" in snippet:
        import_torch()
    monkeypatch.chdir(tmp_path)  # it saves files
    run_python(snippet)


def test_all_snippets_are_found() -> None:
    assert len(SNIPPETS) == README.count("```python") >= 3


@pytest.mark.parametrize("folder", ["fastlstm/", "fastlstm/kernels/"])
def test_each_file_has_one_row(folder: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition(f"| `{folder}` | |\n")[2].partition("\n\n")[0]
    named = [name.rstrip("/") for row in table.splitlines() for name in re.findall("`(.*?)`", row.split("|")[1])]
    files = [path.name for path in (ROOT / folder).iterdir() if not any(fnmatch(path.name, built) for built in BUILT)]
    assert [name for name in files if sum(fnmatch(name, pattern) for pattern in named) != 1] == []
    assert [pattern for pattern in named if not any(fnmatch(name, pattern) for name in files)] == []
