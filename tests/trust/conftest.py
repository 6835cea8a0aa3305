"""Good artifacts, made once."""

import goodfiles
import pytest


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> goodfiles.Good:
    return goodfiles.make(tmp_path_factory.mktemp("good"))
