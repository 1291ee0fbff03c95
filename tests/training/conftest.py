"""Fixtures of the tests of training."""

import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small file system can be mounted here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
