"""Huge pages: memory that is there moves into them unchanged, and a refusal is no error."""

from __future__ import annotations

import sys

import pytest
import torch

from pagedattn_lab.huge_pages import HUGE_PAGE, collapse, take
from pagedattn_lab.models.fused_decoder import fused_linear, reordered
from tests.helpers.smaps import lines_of

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")


def huge_kib(address: int) -> int:
    return int(lines_of(address)["AnonHugePages"].split()[0])


@pytest.fixture
def there_are_huge_pages() -> None:
    probe = torch.ones(4 * HUGE_PAGE, dtype=torch.uint8)
    if not collapse(probe.data_ptr(), len(probe)):
        pytest.skip("this system gives no huge pages")


@only_linux
@pytest.mark.usefixtures("there_are_huge_pages")
def test_what_stands_in_memory_stays() -> None:
    """Catches memory dropped on the way, or an address or a length that is not rounded to whole pages."""
    numbers = torch.arange(HUGE_PAGE, dtype=torch.int32)
    tensor = numbers.clone()
    num_pages = collapse(tensor.data_ptr() + 12, tensor.nbytes - 100)
    assert 1 <= num_pages <= 5
    assert huge_kib(tensor.data_ptr()) >= num_pages * HUGE_PAGE // 1024
    assert torch.equal(tensor, numbers)


@only_linux
@pytest.mark.usefixtures("there_are_huge_pages")
@pytest.mark.skipif(not reordered(torch.float32), reason="this build of torch has no order of weights of its own")
def test_weights_of_the_fused_loop_lie_in_huge_pages() -> None:
    """Catches weights left in pages of 4 KiB, and products changed by the move."""
    layer = torch.nn.Linear(1024, 4 * HUGE_PAGE // 4096, bias=False)
    product = fused_linear([layer])
    address = torch.ops.mkldnn.data_ptr(product.__closure__[1].cell_contents)
    assert huge_kib(address) > 0
    x = torch.randn(3, 1024)
    assert torch.allclose(product(x), layer(x), atol=1024 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(("address", "num_bytes"), [(0, 0), (4096, 1), (2**47 - HUGE_PAGE, 100)])
def test_a_refusal_is_no_error(address: int, num_bytes: int) -> None:
    """Catches a crash, or an exception, where nothing is mapped."""
    assert collapse(address, num_bytes) == 0


def test_little_memory_comes_from_elsewhere() -> None:
    """Catches a mapping of its own for each small cache."""
    assert take(HUGE_PAGE - 1) is None
