"""Unit tests use neither the data nor the runs of the user."""

import os

import pytest

# Tests use synthetic images and files that they write themselves.
os.environ["VQLIB_DATA"] = "synthetic"
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = "build/.hypothesis"


@pytest.fixture(scope="session", autouse=True)
def work_home(tmp_path_factory):
    """Set VQLIB_HOME to a temporary folder for the caches and runs of the tests."""
    home = tmp_path_factory.mktemp("vqlib_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(home))
        yield home
