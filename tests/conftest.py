"""Unit tests see neither the user's data nor the user's runs."""

import os

import pytest

# Tests run on the embedded default and on files they write themselves.
os.environ["VQLIB_DATA"] = "synthetic"


@pytest.fixture(scope="session", autouse=True)
def work_home(tmp_path_factory):
    """Caches and runs of the tests go to a temporary folder, by way of VQLIB_HOME."""
    home = tmp_path_factory.mktemp("vqlib_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(home))
        yield home
