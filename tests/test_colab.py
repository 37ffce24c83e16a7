"""Badges and set-up cells: that they lead somewhere, to the tag of this version, and that Colab's torch is left alone."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from test_notebooks import COLAB, problems

import rftkit
from rftkit import colab
from rftkit.config import UserError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADDRESS = "https://github.com/owner/name"


def setup_of(path):
    (cell,) = (c for c in json.loads(path.read_text())["cells"] if "setup" in c["metadata"].get("tags", []))
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_are_up_to_date(path):
    """If this fails: python -m rftkit colab."""
    address = colab.repository()
    assert setup_of(path) == colab.setup_cell(address)
    shown = [m[0] for m in colab.BADGE.finditer(path.read_text())]
    assert shown == ([colab.badge(address, path.name)] if address else [])
    table = (ROOT / "README.md").read_text()
    assert colab.badge(address, path.name) in table if address else not colab.BADGE.search(table)


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is written to, which knows its address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("build", ".*"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}.git"\n')
    return tmp_path


def test_badges_open_their_own_notebook_at_the_tag_of_this_version(checkout):
    before = {path: path.read_bytes() for path in (*colab.write(checkout), checkout / "README.md")}
    assert len(before) == len(NOTEBOOKS) + 1
    for path in before.keys() - {checkout / "README.md"}:
        notebook = nbformat.read(path, as_version=4)
        first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert colab.BADGE.fullmatch(first.splitlines()[2]) and first.startswith("# ")
        assert (ROOT / COLAB.search(first)["path"]).exists() and COLAB.search(first)["path"] == f"notebooks/{path.name}"
        assert f"github/owner/name/blob/v{rftkit.__version__}/" in first
        assert problems(notebook, ROOT / "notebooks" / path.name) == []
        assert f'"{ADDRESS}", "v{rftkit.__version__}"' in setup_of(path)
    readme = (checkout / "README.md").read_text()
    assert len(colab.BADGE.findall(readme)) == len(re.findall(r"^\| \[[^\]]*\]\(notebooks/", readme, re.M)) > 0
    colab.write(checkout)  # again: nothing more
    assert all(path.read_bytes() == content for path, content in before.items())


def test_without_an_address_there_are_no_badges(checkout):
    colab.write(checkout)
    (checkout / "pyproject.toml").write_text("[project]\n")
    for path in colab.write(checkout):
        assert not colab.BADGE.search(path.read_text()) and 'REPOSITORY, TAG = ""' in setup_of(path)
        first = nbformat.read(path, as_version=4).cells[0].source
        assert (
            not colab.repository()
            and first == nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells[0].source
        )
    assert not colab.BADGE.search((checkout / "README.md").read_text())


def test_an_address_that_colab_cannot_open(checkout):
    (checkout / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/rftkit"\n')
    with pytest.raises(UserError, match=r"^Colab opens notebooks of GitHub only[^\n]+\.$"):
        colab.write(checkout)


# --- the cell ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_cell(tmp_path, monkeypatch):
    """Runs the cell where rftkit is not found; returns pip's words. git is real, pip is not: it would want a network."""

    def run(address, on_colab=True):
        find, started, said = importlib.util.find_spec, subprocess.run, []

        def start(words, **kwargs):
            if "pip" not in words:
                return started(words, **kwargs)
            return said.append(words)

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rftkit" else find(name))
        monkeypatch.setattr(subprocess, "run", start)
        monkeypatch.setattr(sys, "path", list(sys.path))
        if on_colab:
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        Path("cell.py").write_text(colab.setup_cell(address))
        runpy.run_path("cell.py")
        return said

    return run


def test_the_cell_gets_the_tag_and_keeps_what_colab_has(run_cell, tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    shutil.copytree(ROOT / "rftkit", origin / "rftkit", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", origin)
    quiet = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "advice.detachedHead=false"]
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["commit", "-q", "-m", "x"],
        ["tag", colab.tag()],
        ["rm", "-rq", "rftkit"],
        ["commit", "-q", "-m", "later"],
    ):
        subprocess.run(["git", *who, *words], cwd=origin, check=True, env=quiet)
    versions = {"torchvision": "0.26.0+cu128"}  # Colab has one, and this environment must not
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions.get(name) or version(name))
    (pip,) = run_cell(origin.as_uri())
    assert pip[1:] == ["-m", "pip", "install", "-q", "-c", "kept.txt", "./course[colab]"]
    kept = {r.name: r for r in map(Requirement, Path("kept.txt").read_text().splitlines())}
    assert set(kept) == {"torch", "torchvision", "numpy", "pillow"}
    assert all(r.specifier.contains(version(name)) for name, r in kept.items() if name != "torchvision")
    assert Path("course/rftkit/colab.py").exists() and sys.path[0] == "course"  # the tag, and not what came after it


@pytest.mark.parametrize(("address", "on_colab"), [("", True), (ADDRESS, False)])
def test_elsewhere_the_cell_installs_nothing(run_cell, address, on_colab):
    with pytest.raises(ModuleNotFoundError, match="rftkit not found: run `make lab`"):
        run_cell(address, on_colab)
    assert os.listdir() == ["cell.py"]


def test_colabs_packages_are_among_those_that_the_package_takes():
    """As it was reported in August 2026: torch 2.11.0 for CUDA 12.8, Python 3.12."""
    project = PYPROJECT["project"]
    needed = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert needed["torch"].contains("2.11.0") and Requirement(f"python{project['requires-python']}").specifier.contains(
        "3.12.13"
    )
    assert {Requirement(r).name for r in project["optional-dependencies"]["colab"]} == {"bitsandbytes", "scikit-image"}
