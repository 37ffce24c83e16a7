"""`python -m rftkit colab`: writes into every notebook the cell that sets it up on Colab, and a badge that opens it there.

A badge needs the address of the repository, which pyproject.toml gives as `Repository` under [project.urls]; without one there are no
badges, and the cell installs nothing. Badge and cell name the tag of this version, never a branch, so that a notebook goes on
meeting the package that it was written for. Run it again after a new version, a new notebook, or a new address.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import rftkit
from rftkit.config import UserError
from rftkit.runs import write_whole

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = re.compile(r" ?\[!\[Open [^\]]* in Colab\]\([^)]*\)\]\([^)]*\)")
CELL = """\
# Nothing to install where `make` has set the course up. On Colab this gets what is missing; torch, NumPy and Pillow stay as they are there.
import subprocess
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

REPOSITORY, TAG = "{repository}", "{tag}"  # `python -m rftkit colab` writes these
warnings.filterwarnings("ignore", message="IProgress not found")  # no progress widgets are used
warnings.filterwarnings("ignore", category=FutureWarning)  # renamed arguments inside the libraries

if missing := [name for name in ("rftkit", "torch", "transformers", "trl", "peft") if find_spec(name) is None]:
    if not REPOSITORY or "google.colab" not in sys.modules:
        raise ModuleNotFoundError(f"{{', '.join(missing)}} not found: run `make lab` at the top of a checkout of rftkit.")
    kept = [f"{{name}}=={{version(name)}}" for name in ("torch", "torchvision", "numpy", "pillow")]
    Path("kept.txt").write_text("\\n".join(kept))
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", TAG, REPOSITORY, "course"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt", "./course[colab]"], check=True)
    sys.path.insert(0, "course")"""


def repository(root: Path = ROOT) -> str:
    """The repository's address as pyproject.toml names it, "" if it names none. Raises UserError for one that Colab cannot open."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    found = str(urls.get("Repository", "")).removesuffix(".git").rstrip("/")
    if found and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", found):
        raise UserError(
            f"Colab opens notebooks of GitHub only, not of {found}: give a https://github.com/owner/name as Repository."
        )
    return found


def tag() -> str:
    return f"v{rftkit.__version__}"


def setup_cell(address: str) -> str:
    """The source of every notebook's first code cell."""
    return CELL.format(repository=address, tag=tag())


def badge(address: str, name: str) -> str:
    """Markdown that opens notebooks/`name` in Colab."""
    place = address.removeprefix("https://github.com/")
    return f"[![Open {name} in Colab]({PICTURE})](https://colab.research.google.com/github/{place}/blob/{tag()}/notebooks/{name})"


def with_badge(text: str, line: str, shown: str, between: str = " ") -> str:
    """`text` with the badge `shown`, if there is one, behind the first match of the expression `line`."""
    return re.sub(line, lambda m: m[0] + between + shown, text, count=1, flags=re.M) if shown else text


def write(root: Path = ROOT) -> list[Path]:
    """Bring the notebooks and the README's table up to date. Returns the notebooks."""
    address = repository(root)
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    readme = BADGE.sub("", (root / "README.md").read_text(encoding="utf-8"))
    for path in paths:
        shown = badge(address, path.name) if address else ""
        notebook = json.loads(path.read_text(encoding="utf-8"))
        _set_up(notebook, path.name, address)
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        plain = re.sub(rf"\n\n{BADGE.pattern}(?=\n)", "", "".join(first["source"]))
        first["source"] = with_badge(plain, r"\A# .*$", shown, "\n\n").splitlines(True)
        write_whole(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        readme = with_badge(readme, rf"^\| \[[^\]]*\]\(notebooks/{re.escape(path.name)}\)", shown)
    write_whole(root / "README.md", readme)
    return paths


def _set_up(notebook: dict[str, Any], name: str, address: str) -> None:
    cells = [cell for cell in notebook["cells"] if "setup" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"{name} has {len(cells)} cells tagged 'setup': tag exactly one.")
    cells[0]["source"] = setup_cell(address).splitlines(True)


def main(argv: list[str]) -> int:
    """Write the set-up cells and the badges."""
    argparse.ArgumentParser(prog="python -m rftkit colab", description=__doc__).parse_args(argv)
    if not (ROOT / "pyproject.toml").exists():
        raise UserError("The notebooks are not here: run this from a checkout of rftkit.")
    paths = write()
    said = (
        f"badges to {tag()} of {repository()}"
        if repository()
        else "no badges: pyproject.toml names no Repository under [project.urls]"
    )
    print(f"{len(paths)} notebooks: set-up cells written, {said}.")
    return 0
