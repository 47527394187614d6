"""Installs packages for real, into a folder of their own, and without a network."""

import subprocess
import sys
from pathlib import Path


def install(folder: Path, *packages: Path) -> None:
    """Install packages from their sources into a folder that Python can be told to look into.

    Building leaves folders behind, beside the sources.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder)]
    done = subprocess.run([*command, *options, *map(str, packages)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
