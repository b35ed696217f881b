"""`make audit`: do the dependencies fit together, under licences that are known, without known holes?

Needs no network but the package registry. Where it does not tell of holes, that is said and fails nothing.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata

PROJECT = "pretraining-bench"
# Words of licences that let anyone use, change and pass on; weak copyleft for what is only imported.
GRANTED = (
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Python-2.0|Unlicense|MPL|Mozilla|HPND|Zlib|0BSD|CC0"
)
GRANTED += r"|CC BY-SA|CC-BY-SA|LGPL|CNRI|Public Domain"
REFUSED = r"AGPL|Affero|(?<!L)GPL|Proprietary|NonCommercial|-NC\b"
# What states no licence in its metadata, or one that does not bind us, and where it stands.
KNOWN = {"resvg-py": "MIT, in its file LICENSE"}


def closure(project: str) -> dict[str, metadata.Distribution]:
    """The project's dependencies and theirs, of all extras, as far as they are installed."""
    found: dict[str, metadata.Distribution] = {}
    todo = [metadata.distribution(project)]
    while todo:
        for line in todo.pop().requires or []:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            key = re.sub(r"[-_.]+", "-", name).lower()
            if key in found:
                continue
            try:
                found[key] = metadata.distribution(name)
            except metadata.PackageNotFoundError:  # an extra or a marker of another system
                continue
            todo.append(found[key])
    return found


def licence_of(about: metadata.PackageMetadata) -> str:
    """What a package says of its licence, all of it; "" if nothing."""
    stated = [about.get("License-Expression"), *(about.get_all("Classifier") or [])]
    texts = [
        text.removeprefix("License :: ")
        for text in stated
        if text and (text == stated[0] or "License" in text)
    ]
    return " | ".join(texts) or (about.get("License") or "").strip().partition("\n")[0]


def licence_problem(name: str, stated: str) -> str | None:
    """A line on a licence that is unknown or binds its user; None where there is none."""
    said = KNOWN.get(name, stated)
    if not said:
        return f"{name}: states no licence; look it up and add it to KNOWN in .ci/audit.py, or replace it"
    granted, refused = re.search(GRANTED, said), re.search(REFUSED, said)
    if refused and not granted:
        return f"{name}: {said[:80]} asks for more than this project's licence gives; replace it"
    if not granted:
        return f"{name}: {said[:80]!r} is no licence that is known here; read it and name it in .ci/audit.py"
    return None


def holes() -> tuple[list[str], str]:
    """A line for each known vulnerability of what is installed, and what was looked up."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return [], f"vulnerabilities: not looked up, the registry does not tell ({type(error).__name__})"
    asked = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {hole['fix_versions'] or 'none'}"
        for package in asked
        for hole in package["vulns"]
    ]
    if not asked:
        return [], f"vulnerabilities: not looked up, the registry tells of none of {len(packages)} packages"
    return found, f"vulnerabilities: {len(found)} known, {len(asked)} of {len(packages)} packages looked up"


def main() -> int:
    """Say what was found; 1 if something has to be mended."""
    fits = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    problems = fits.stdout.splitlines() if fits.returncode else []
    packages = closure(PROJECT)
    licences = [licence_problem(name, licence_of(one.metadata)) for name, one in sorted(packages.items())]
    problems += [line for line in licences if line]
    found, said = holes()
    problems += found
    for line in problems:
        print(line)
    counts = Counter(bool(line) for line in licences)
    print(f"{len(packages)} dependencies: {'fit' if not fits.returncode else 'do not fit'} together")
    print(f"licences: {counts[False]} known and permissive, {counts[True]} not")
    print(said)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
