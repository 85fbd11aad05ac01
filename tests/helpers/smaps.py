"""What Linux says of a piece of this process's memory."""

from __future__ import annotations

from pathlib import Path


def lines_of(address: int) -> dict[str, str]:
    """Read the kernel's account of the mapping that an address lies in, line by line.

    Raises:
        LookupError: nothing is mapped there.
    """
    account: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            low, _, high = name.partition("-")
            inside = int(low, 16) <= address < int(high, 16)
        elif inside:
            account[name.removesuffix(":")] = rest.strip()
    if not account:
        raise LookupError(f"nothing is mapped at {address:#x}")
    return account
