"""What the README shows runs as it stands: each snippet pasted into a fresh interpreter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import import_torch, run_python

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import torch" in snippet:
        import_torch()
    monkeypatch.chdir(tmp_path)  # it saves files
    run_python(snippet)


def test_all_are_found() -> None:
    assert len(SNIPPETS) == README.count("```python") >= 3
