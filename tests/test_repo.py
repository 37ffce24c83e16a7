"""The repository as a whole: pins, licences, packaging, links, and the Makefile's two refusals."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import rftkit

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = {".py", ".md", ".ipynb", ".toml", ".txt", ".json", ".jinja", ".cff", ".svg", ".html", ".yml", ".yaml", ""}


def pins(path):
    """{package: version} of the `==` lines of a requirements file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+]+)$", path.read_text(), re.M))


PINS = pins(ROOT / "requirements.txt")


def tracked():
    """Files that are in the repository, or would be after `git add .`."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_torchvision_beside_cpu_torch():
    """It makes the Qwen2.5-VL classes fail at import: github.com/pytorch/vision/issues/9085."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        assert find_spec("torchvision") is None


@pytest.mark.skipif(find_spec("vllm") is not None, reason="course/locks/vllm.txt has its own versions")
@pytest.mark.parametrize("package", PINS)
def test_installed_version_is_the_pinned_one(package):
    assert importlib.metadata.version(package).split("+")[0] == PINS[package]


@pytest.mark.parametrize("lock", ["requirements.txt", "course/locks/vllm.txt"])
def test_pins_lie_in_the_declared_ranges(lock):
    project = PYPROJECT["project"]
    ranges = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    locked = pins(ROOT / lock)
    own = project["optional-dependencies"]["vllm"] if "vllm" not in lock else []
    for requirement in (Requirement(r) for r in ranges if r not in own):
        if requirement.name in locked:
            assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_locks_share_their_versions():
    vllm, gpu = pins(ROOT / "course/locks/vllm.txt"), (ROOT / "course/locks/gpu.txt")
    apart = {"transformers", "huggingface_hub"}  # vLLM 0.31 holds these two back
    assert all(vllm[name] == PINS[name] for name in vllm.keys() & PINS.keys() - apart)
    assert pins(gpu)["torchvision"] == vllm["torchvision"]
    assert "-r ../../requirements.txt" in gpu.read_text()


def test_every_file_of_the_package_is_shipped():
    data = PYPROJECT["tool"]["setuptools"]["package-data"]["rftkit"]
    inside = [path.relative_to(ROOT / "rftkit") for path in tracked() if path.is_relative_to(ROOT / "rftkit")]
    modules = [path for path in inside if path.suffix == ".py"]
    assert all(len(path.parts) == 1 for path in modules), "only the top folder is listed as a package"
    left = [path for path in inside if path not in modules and not any(path.match(glob) for glob in data)]
    assert left == []


def test_versions_agree():
    assert f"\nversion: {rftkit.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", rftkit.__version__)


def test_licences():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert "creativecommons.org/licenses/by/4.0" in (ROOT / "course/LICENSE-CC-BY-4.0").read_text()


def test_no_path_of_a_machine():
    """Tests may name such folders, in order to refuse them."""
    machine = re.compile(r"(?<![\w.:/$~}])/(?:home|root|work|tmp|Users)/[\w.-]+")
    found = [
        f"{path.relative_to(ROOT)}: {hit}"
        for path in tracked()
        if path.suffix in TEXT and not path.is_relative_to(ROOT / "tests")
        for hit in machine.findall(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_nothing_large_or_generated_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 30e6, path
        assert not {"build", ".venv", "__pycache__", ".ipynb_checkpoints"} & set(path.relative_to(ROOT).parts)


def test_readme_is_there():
    assert (ROOT / "README.md").is_file()


def test_links_lead_somewhere():
    pages = [path for path in tracked() if path.suffix == ".md"]
    gone = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
        if not re.match(r"[a-z]+:|#", target) and not (page.parent / target.split("#")[0]).exists()
    ]
    assert gone == []


def test_make_targets_in_the_text_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"`make ([a-z]+)", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"


def test_ci_script_can_be_run():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words):
    # a make above us hands its own flags down
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    return subprocess.run(["make", "-s", *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_make
@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_refuses_an_old_python(tmp_path, python):
    done = make("setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert f"rftkit needs Python 3.11 or newer and {python} is not" in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_refuses_torchvision_beside_cpu_torch(tmp_path):
    site = tmp_path / "lib/python3.11/site-packages"
    (site / "torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    (tmp_path / ".rftkit-installed").touch()
    assert make("setup", f"VENV={tmp_path}").returncode == 0
    (site / "torchvision-0.28.0.dist-info").mkdir()
    done = make("setup", f"VENV={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.startswith("torchvision is installed")
