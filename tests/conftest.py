"""Marks, Hypothesis' profiles, and what several files need of other packages."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest
from helpers import import_keras, required


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timing: measures time; leave out with -m 'not timing' on a busy machine")


# The same examples in every run of CI; elsewhere new ones each time. A slow machine is no failure.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def h5py() -> Any:
    return required("h5py")


@pytest.fixture(scope="session")
def keras() -> Any:
    return import_keras()
