"""The option --threads of `pytest bench`."""

from __future__ import annotations

import pytest

import fastlstm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--threads", type=int, default=fastlstm.get_num_threads(), help="threads of every engine; default: all there are"
    )


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--threads"))
