"""`make audit`: check compatibility, licences and known vulnerabilities of all dependencies.

It needs no network except the package registry. If the registry has no vulnerability data, the audit reports
that and does not fail.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "pretraining-bench"
# Names in licences that permit use, change and redistribution; weak copyleft for packages only imported.
GRANTED = (
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Python-2.0|Unlicense|MPL|Mozilla|HPND|Zlib|0BSD|CC0"
)
GRANTED += r"|CC BY-SA|CC-BY-SA|LGPL|CNRI|Public Domain"
REFUSED = r"AGPL|Affero|(?<!L)GPL|Proprietary|NonCommercial|-NC\b"
# Packages without a licence in their metadata, and where their licence is stated.
KNOWN = {"resvg-py": "MIT, in its file LICENSE"}


def closure(project: str, extras: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Return the installed direct and indirect dependencies of the project with some of its extras, by name.

    A dependency that is not installed, such as one of an extra, is left out.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(project, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = [(canonicalize_name(requirement.name), of) for of in ("", *requirement.extras)]
                todo += [pair for pair in wanted if pair not in seen]
    return {name: about for name, about in found.items() if name != project}


def licence_of(about: metadata.PackageMetadata) -> str:
    """Return all licence statements in a package's metadata, or "" if there are none."""
    stated = [about.get("License-Expression"), *(about.get_all("Classifier") or [])]
    texts = [
        text.removeprefix("License :: ")
        for text in stated
        if text and (text == stated[0] or "License" in text)
    ]
    return " | ".join(texts) or (about.get("License") or "").strip().partition("\n")[0]


def licence_problem(name: str, stated: str) -> str | None:
    """Return a line on a licence that is missing, unknown or restrictive, else None."""
    licence = KNOWN.get(name, stated)
    if not licence:
        return f"{name}: no licence in its metadata; add it to KNOWN in .ci/audit.py, or replace the package"
    granted, refused = re.search(GRANTED, licence), re.search(REFUSED, licence)
    if refused and not granted:
        return f"{name}: {licence[:80]} is incompatible with this project's licence; replace the package"
    if not granted:
        return f"{name}: unknown licence {licence[:80]!r}; read it and add it to GRANTED in .ci/audit.py"
    return None


def vulnerabilities() -> tuple[list[str], str]:
    """Return a line for each known vulnerability of the installed packages, and a summary."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return [], f"vulnerabilities: not checked, no answer from the registry ({type(error).__name__})"
    asked = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {one['fix_versions'] or 'no version'}"
        for package in asked
        for one in package["vulns"]
    ]
    if not asked:
        return [], f"vulnerabilities: not checked, the registry knows none of {len(packages)} packages"
    return found, f"vulnerabilities: {len(found)} known, {len(asked)} of {len(packages)} packages checked"


def main() -> int:
    """Print the findings and return 1 if there is a problem."""
    compatible = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    problems = compatible.stdout.splitlines() if compatible.returncode else []
    packages = closure(PROJECT, metadata.metadata(PROJECT).get_all("Provides-Extra") or [])
    licences = [licence_problem(name, licence_of(one.metadata)) for name, one in sorted(packages.items())]
    problems += [line for line in licences if line]
    found, summary = vulnerabilities()
    problems += found
    for line in problems:
        print(line)
    counts = Counter(bool(line) for line in licences)
    print(f"{len(packages)} dependencies: {'compatible' if not compatible.returncode else 'incompatible'}")
    print(f"licences: {counts[False]} permissive, {counts[True]} not")
    print(summary)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
