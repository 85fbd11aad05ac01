"""What every test file gets: plain words from a failing assertion, also where it stands in a shared helper."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
