"""One list of pins: every way to install the book uses it, and nothing keeps versions of its own."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import pagedattn_lab
from tools import bootstrap

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    """Write a package's name in the one way in which all spellings agree."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Return constraints.txt as {package: version}; a line that is no exact pin fails."""
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
    assert len({normal(match[1]) for match in found}) == len(found), "a package is pinned twice"
    return {normal(match[1]): match[2] for match in found}


def environment() -> dict:
    """Return environment.yml."""
    return yaml.safe_load((REPO / "environment.yml").read_text())


def test_every_dependency_is_pinned_within_its_range() -> None:
    """Catches a new dependency without a pin, and a raised minimum that the pin does not meet."""
    extras = PROJECT["optional-dependencies"]
    assert {"lab", "test", "book", "cluster", "cpu", "serve"} == extras.keys()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *extras.values())):
        if requirement.name == PROJECT["name"]:  # an extra that takes in another
            assert requirement.extras <= extras.keys()
            continue
        assert normal(requirement.name) in pins(), f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins()[normal(requirement.name)]), requirement


def test_torch_and_triton_belong_together() -> None:
    """Catches one of the two being renewed alone: torch's Linux wheel asks for exactly this Triton."""
    assert pins()["torch"] == "2.13.0"
    assert pins()["triton"] == "3.7.1"


def test_the_cpu_kernel_comes_with_the_book() -> None:
    """Catches a reader without a GPU, or a run of the tests, left with plain torch; numba and llvmlite are one pair."""
    assert "pagedattn-lab[cpu]" in PROJECT["optional-dependencies"]["lab"]
    assert "pagedattn-lab[cluster,cpu,serve]" in PROJECT["optional-dependencies"]["test"]
    assert PROJECT["optional-dependencies"]["cpu"] == ["numba"]
    assert pins()["numba"] == "0.68.1" and pins()["llvmlite"] == "0.50.0"


def test_environment_yml_has_no_pins() -> None:
    """Catches a second list of versions growing in environment.yml, or an installation without the constraints."""
    python, pip, with_pip = environment()["dependencies"]
    assert re.fullmatch(r"python=3\.\d+", python)
    assert pip == "pip"
    assert with_pip == {"pip": ["-c constraints.txt", "-e .[lab]"]}


def test_every_python_we_name_is_supported() -> None:
    """Catches conda, Binder, the devcontainer or the workflow staying on a Python that the package refuses."""
    workflow = yaml.safe_load((REPO / ".github" / "workflows" / "tests.yml").read_text())
    names = [environment()["dependencies"][0].removeprefix("python=")]
    names += workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    names += re.findall(r'"python:([0-9.]+)-', (REPO / ".devcontainer" / "devcontainer.json").read_text())
    names += [".".join(map(str, bootstrap.OLDEST))]
    names += [name.removeprefix("python") for name in bootstrap.NEWER_NAMES]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert len(names) == 9
    assert all(supported.contains(name) for name in names), names


def test_make_uses_the_same_pins() -> None:
    """Catches a set-up that installs other versions than conda and Binder do."""
    assert bootstrap.REQUIREMENTS == ("-c", "constraints.txt", "-e", ".[lab,test,book]")
    makefile = (REPO / "Makefile").read_text()
    assert "tools/bootstrap.py" in makefile and "pip install" not in makefile


def test_citation_names_the_version() -> None:
    """Catches a release whose citation still names the one before."""
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert str(citation["version"]) == pagedattn_lab.__version__
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
