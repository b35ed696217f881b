"""`make constraints`: print the versions of all dependencies in this environment, in which CI has passed."""

from importlib import metadata

from audit import PROJECT, closure
from packaging.version import Version

HEADER = """\
# The versions with which .ci/run passed on Python 3.11, with all extras; `make constraints` writes them.
# Install them by: pip install --constraint constraints.txt ...
"""


def main() -> None:
    """Print a file of constraints; `audit`, an extra for CI only, is left out with its own dependencies."""
    extras = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    packages = closure(PROJECT, (extra for extra in extras if extra != "audit"))
    print(HEADER, end="")
    for name, about in sorted(packages.items()):
        print(f"{name}=={Version(about.version).public}")  # 2.13.0+cpu is a build for this machine


if __name__ == "__main__":
    main()
