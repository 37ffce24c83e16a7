"""`python -m rftkit run`: what it refuses, in which words, and what it leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import rftkit.notebooks as notebooks
from rftkit.__main__ import main
from rftkit.config import UserError

ROOT = Path(__file__).parent.parent
PARAMETERS = 'preset = "tiny"\nseed = 0  # which draw\nlr: float = 1e-3\nslow = False\nlimit = None\n'


def write(name, *code, parameters=PARAMETERS, tags=("parameters",)):
    cells = [new_markdown_cell("# A title\n\nText."), new_code_cell(parameters, metadata={"tags": list(tags)})]
    cells += [new_code_cell(source) for source in code]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "rftkit": {"minutes": {"tiny": 0.5}}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), f"notebooks/{name}.ipynb")


@pytest.fixture(autouse=True)
def workshop(tmp_path, monkeypatch):
    """An empty folder with two small notebooks in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RFTKIT_HOME", raising=False)
    (tmp_path / "notebooks").mkdir()
    write(
        "01_good", "import os, sys, rftkit", "print(seed, sys.executable, os.environ['RFTKIT_HOME'], rftkit.__file__)"
    )
    write("02_bad", "x = 1", "def broken():\n    raise ValueError('first line\\nsecond line')", "broken()", "x = 2")
    return tmp_path


def refusal(capsys, *argv):
    """The one sentence on stderr, after checking that the command was refused before anything was made."""
    assert main(["run", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"rftkit: [^\n]+\.\n", captured.err)
    assert not os.path.exists("build")
    return captured.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["09"], "no notebook '09': choose from 01_good, 02_bad"),
        (["01", "nonsense"], "no notebook 'nonsense'"),
        (["--preset", "huge"], "no preset 'huge': choose one of tiny"),
        (["-p", "preset", "huge"], "no preset 'huge'"),
        (["-p", "sead", "1"], "01_good has no parameter 'sead': it takes preset, seed, lr, slow, limit"),
        (["-p", "seed", "three"], "seed = three does not fit: give a whole number, such as 0"),
        (["-p", "seed", "1.5"], "seed = 1.5"),
        (["-p", "seed", "True"], "seed = True"),
        (["-p", "lr", "nan"], "lr = nan"),
        (["-p", "limit", "[1]"], "limit = [1]"),
        (["-p", "slow", "1"], "give true or false"),
        (["--jobs", "0"], "give --jobs 1 or more"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(capsys, argv, says):
    assert says in refusal(capsys, *argv)


@pytest.mark.parametrize(
    ("tags", "parameters", "says"),
    [
        ((), PARAMETERS, "03_odd.ipynb has 0 cells tagged 'parameters'"),
        (("parameters",), "preset = 'tiny'\nsteps = [1, 2]", "line 2"),
        (("parameters",), "preset = 'tiny'\nseed = int('3')", "single values"),
        (("parameters",), "preset = 'tiny'\nimport os", "line 2"),
        (("parameters",), "preset = ", "03_odd.ipynb"),
        (("parameters",), "seed = 0", "has no parameter 'preset'"),
    ],
)
def test_a_notebook_with_odd_parameters_is_refused(capsys, tags, parameters, says):
    write("03_odd", tags=tags, parameters=parameters)
    assert says in refusal(capsys)


def test_a_damaged_notebook_is_refused(capsys, workshop):
    (workshop / "notebooks/03_cut.ipynb").write_text('{"cells": [')
    assert "03_cut.ipynb cannot be read as a notebook" in refusal(capsys, "3")


def test_no_notebooks_at_all(capsys, workshop):
    for path in (workshop / "notebooks").iterdir():
        path.unlink()
    assert "run this from the top of a checkout" in refusal(capsys)


def test_a_folder_that_cannot_be_written(capsys, workshop):
    (workshop / "file").touch()
    assert "name another folder with --out" in refusal(capsys, "01", "--out", "file/inside")


def test_missing_tools_are_named(capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "find_spec", lambda name: None if name == "papermill" else object())
    assert "needs papermill: pip install" in refusal(capsys)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 0, 3), ("-3", 0, -3), ("2", 0.5, 2.0), ("1e-4", 0.5, 1e-4), ("3", "x", "3"), ("None", "x", "None"),
        ("true", False, True), ("False", True, False), ("None", None, None), ("7", None, 7), ("text", None, "text"),
    ],
)  # fmt: skip
def test_values_take_the_type_of_the_default(text, default, value):
    converted = notebooks.convert("name", text, default)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize("name", ["2", "02", "02_bad", "bad", "02_bad.ipynb", "notebooks/02_bad.ipynb"])
def test_names_of_a_notebook(workshop, name):
    assert [p.stem for p in notebooks.find_notebooks([name, "2"], workshop / "notebooks")] == ["02_bad"]


def test_order_is_the_readers(workshop):
    found = notebooks.find_notebooks(["2", "1"], workshop / "notebooks")
    assert [p.stem for p in found] == ["02_bad", "01_good"]


def test_environment_is_put_back(workshop, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the user's own choice stands
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    before = dict(os.environ)
    with pytest.raises(UserError), notebooks.kernel_environment("tiny", workshop):
        assert os.environ["RFTKIT_HOME"] == str(workshop)
        assert os.environ["HF_HUB_OFFLINE"] == "0"
        raise UserError("anything")
    assert dict(os.environ) == before
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with notebooks.kernel_environment("qlora", workshop):
        assert "HF_HUB_OFFLINE" not in os.environ


def test_a_run_of_a_good_and_a_bad_notebook(capfd, workshop, monkeypatch):
    """The bad one does not stop the rest, is told in one line, and is kept as far as it went."""
    decoy = workshop / "user/kernels/python3"  # a kernel the user registered must not take the place of ours
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text('{"argv": ["false"], "display_name": "decoy", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(workshop / "user"))

    assert main(["run", "2", "1", "-p", "seed", "41", "--out", "made", "--jobs", "1"]) == 1

    out = capfd.readouterr().out
    assert "02_bad: about 0.5 min at the tiny tier\n01_good: about 0.5 min" in out
    assert "02_bad failed: cell 5 raised ValueError: first line\n" in out
    assert re.search(r"^02_bad +\d+\.\d  failed$", out, re.M)
    assert re.search(r"^01_good +\d+\.\d  ok$", out, re.M)

    good = nbformat.read("made/notebooks/01_good.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for cell in good.cells for o in cell.get("outputs", []))
    assert printed == f"41 {os.path.normpath(sys.executable)} {workshop / 'made'} {sys.modules['rftkit'].__file__}\n"
    page = (workshop / "made/html/01_good.html").read_text()
    assert "<title>A title</title>" in page
    assert printed.strip() in page

    bad = nbformat.read("made/notebooks/02_bad.ipynb", as_version=4)
    assert [output.ename for cell in bad.cells for output in cell.get("outputs", [])] == ["ValueError"]
    assert bad.cells[-1].execution_count is None  # nothing ran after the failure
    assert not (workshop / "made/html/02_bad.html").exists()
    source = nbformat.read("notebooks/01_good.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in source.cells)


MEET = """import time
from pathlib import Path
Path({mine!r}).touch()
for _ in range(600):
    if Path({other!r}).exists():
        break
    time.sleep(0.1)
else:
    raise TimeoutError("alone")"""


def test_two_notebooks_run_at_a_time(capfd, workshop):
    """Each of two waits for the other; a third one that fails stops neither."""
    here, there = str(workshop / "a"), str(workshop / "b")
    write("03_a", MEET.format(mine=here, other=there))
    write("04_b", MEET.format(mine=there, other=here))
    assert main(["run", "3", "4", "2", "--jobs", "3"]) == 1
    out = capfd.readouterr().out
    assert "02_bad failed: cell 5 raised ValueError: first line" in out
    assert re.findall(r"^(\d\d_\w+) .*  (ok|failed)$", out, re.M) == [
        ("02_bad", "failed"),
        ("03_a", "ok"),
        ("04_b", "ok"),
    ]


@pytest.mark.parametrize(("deaths", "result"), [(1, "ok"), (2, "failed")])
def test_a_kernel_that_dies_at_its_start_is_started_once_more(capfd, monkeypatch, deaths, result):
    """As when two that start at once choose one port."""
    import papermill

    whole, tried = papermill.execute_notebook, []

    def dies(*args, **more):
        tried.append(args)
        if len(tried) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return whole(*args, **more)

    monkeypatch.setattr(papermill, "execute_notebook", dies)
    assert main(["run", "1"]) == (result == "failed") and len(tried) == 2
    assert re.search(rf"^01_good .*  {result}$", capfd.readouterr().out, re.M)


def test_a_process_that_is_killed_is_told(capfd):
    """As the system does where memory runs out: the kernel's parent is the process that runs the notebook."""
    write("03_killer", "import os, signal", "os.kill(os.getppid(), signal.SIGKILL)")
    assert main(["run", "3", "1", "--jobs", "2"]) == 1
    out = capfd.readouterr().out
    assert "03_killer failed: its process was killed, perhaps out of memory" in out
    assert re.search(r"^01_good +\d+\.\d  ", out, re.M)  # whatever became of it, it is in the table


@pytest.mark.parametrize("reached", ["all", "the command alone"])
def test_an_interruption_begins_no_other_notebook(workshop, reached):
    """Ctrl-C goes to all processes; a notebook's may lose it at a bad moment, and is ended all the same."""
    for name in ("03_a", "04_b", "05_c"):
        write(name, f"import time\nfrom pathlib import Path\nPath({str(workshop / name)!r}).touch()\ntime.sleep(120)")
    process = subprocess.Popen(
        [sys.executable, "-m", "rftkit", "run", "3", "4", "5", "--jobs", "2"],
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while len(list(workshop.glob("0?_?"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT) if reached == "all" else os.kill(process.pid, signal.SIGINT)
    assert process.wait(90) != 0  # the notebooks would take 120 seconds
    assert psutil.wait_procs(family, 30)[1] == [], "a kernel or a process of the pool goes on"
    assert sorted(path.name for path in workshop.glob("0?_?")) == ["03_a", "04_b"]


@pytest.mark.parametrize(
    ("preset", "cores", "free", "jobs"),
    [("tiny", 2, 8e9, 2), ("tiny", 1, 8e9, 1), ("tiny", 8, 4e9, 1), ("qlora", 8, 64e9, 1)],
)
def test_how_many_at_a_time(monkeypatch, preset, cores, free, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(notebooks.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert notebooks.jobs_here(preset) == jobs


def test_a_kernel_that_dies_is_told(capfd):
    write("03_dies", "import os", "os._exit(1)")
    assert main(["run", "3"]) == 1
    assert "03_dies failed: the kernel stopped, perhaps out of memory" in capfd.readouterr().out


def test_help_is_light():
    """Asking for help must not wait for torch."""
    code = "import sys, rftkit.__main__ as m; print(sorted({'torch', 'papermill', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_usage_errors_exit_with_2(capsys):
    for argv in ([], ["dance"], ["run", "-p", "seed"], ["run", "--nonsense"]):
        with pytest.raises(SystemExit) as error:
            main(argv)
        assert error.value.code == 2
    capsys.readouterr()


def test_interruption(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "run_notebooks", interrupt)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "rftkit: interrupted.\n"
