"""Installs packages for real, into a folder of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

FRONT_END = "comfyui-frontend-package==1.58.1"
CLIENTS = ("comfy-api-simplified==1.6.0", "comfy-api-client==0.1.0", "comfyui-workflow-client==0.1.0")
"""What other people have published for ComfyUI; no part of ours needs any of it."""


def install(folder: Path, *packages: Path) -> None:
    """Install packages from their sources into a folder that Python can be told to look into; without a network.

    Building leaves folders behind, beside the sources.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder)]
    done = subprocess.run([*command, *options, *map(str, packages)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def fetch(folder: Path, requirement: str, *options: str) -> None:
    """Install a package of the package index's; the test is skipped where there is none to be reached."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    done = subprocess.run([*command, "--target", str(folder), requirement], capture_output=True, text=True)
    if done.returncode and ("connection" in done.stderr.lower() or "Temporary failure" in done.stderr):
        pytest.skip(f"no package index can be reached for {requirement}")
    assert done.returncode == 0, done.stdout + done.stderr
