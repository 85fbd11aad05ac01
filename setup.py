"""Everything else about the package stands in pyproject.toml."""

from setuptools import Distribution, setup


class BookDistribution(Distribution):
    """Has its data files (JupyterLab's extension) installed by ``pip install -e`` too.

    For an editable installation setuptools (84.2) asks a distribution for ``has_data``, a name that it does not define.
    """

    has_data = Distribution.has_data_files


setup(distclass=BookDistribution)
