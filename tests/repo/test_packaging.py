"""The wheel, built from the sdist, holds the whole package and works elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOT_LINKS = ("algorithms", "envs", "tuned_examples")

pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    """What was built from a copy of the sources, and where it was installed."""

    sdist: Path
    wheel: Path
    bin: Path
    elsewhere: Path


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command without our environment's Python settings; returns its stdout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def package_files() -> set[str]:
    """Every file of the package in the source tree, by its path from the root."""
    return {
        str(path.relative_to(REPO))
        for path in (REPO / "pure_rllib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Builds without the root links, installs into a clean environment.

    The environment sees this one's libraries through a path file, so that nothing
    is downloaded; the editable project does not come along (its own path file is
    only read in the environment it belongs to).
    """
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(
        REPO / "pure_rllib",
        source / "pure_rllib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    # torch needs setuptools, so the build back end is here: no download.
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")

    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install")
    run(*pip, "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = Path(run(python, "-c", query, cwd=folder).strip())
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    shutil.rmtree(source / "pure_rllib")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(sdist, wheel, environment / "bin", elsewhere)


def test_wheel_holds_every_file_of_the_package(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [n for n in archive.namelist() if n.endswith("licenses/LICENSE")]
    assert names == package_files()
    assert len(licences) == 1


def test_sdist_holds_every_file_of_the_package(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= names
    assert not [name for name in names if name.startswith(ROOT_LINKS)]


def test_every_module_imports_from_the_wheel(installed: Installed) -> None:
    code = (
        "import importlib, pkgutil, pure_rllib\n"
        "for m in pkgutil.walk_packages(pure_rllib.__path__, 'pure_rllib.'):\n"
        "    if not m.name.endswith('__main__'):\n"
        "        print('file:', importlib.import_module(m.name).__file__)\n"
    )
    printed = run(installed.bin / "python", "-c", code, cwd=installed.elsewhere)
    # Libraries that others bring along print lines of their own when imported.
    lines = [line.partition(": ") for line in printed.splitlines()]
    paths = [path for mark, _, path in lines if mark == "file"]
    inside = str(installed.bin.parent)
    assert [path for path in paths if not path.startswith(inside)] == []
    modules = {name for name in package_files() if name.endswith(".py")}
    # The top package is not walked over.
    assert len(paths) == len({m for m in modules if "__main__" not in m}) - 1


def test_version_and_types_are_those_of_the_source(installed: Installed) -> None:
    code = (
        "import importlib.metadata as m, importlib.resources as r, pure_rllib\n"
        "print(m.version('pure-rllib') == pure_rllib.__version__)\n"
        "print((r.files('pure_rllib') / 'py.typed').is_file())\n"
    )
    out = run(installed.bin / "python", "-c", code, cwd=installed.elsewhere)
    assert out.split() == ["True", "True"]


def test_embedded_models_are_those_of_the_wheel(installed: Installed) -> None:
    name = "embedded:arithmetic-policy"
    code = (
        "from transformers import AutoModelForCausalLM\n"
        "from pure_rllib.models.loading import resolve_model\n"
        f"folder = resolve_model({name!r})\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "print(model.config.vocab_size, folder)\n"
    )
    out = run(installed.bin / "python", "-c", code, cwd=installed.elsewhere)
    size, folder = out.splitlines()[-1].split(maxsplit=1)
    assert size == "22" and folder.startswith(str(installed.bin.parent))


def test_console_script_runs(installed: Installed) -> None:
    command = installed.bin / "pure-rllib"
    out = run(command, "--help", cwd=installed.elsewhere)
    assert "train" in out
    listed = run(command, "list", cwd=installed.elsewhere)
    stems = {Path(n).stem for n in package_files() if n.endswith(".yaml")}
    assert [stem for stem in sorted(stems) if stem not in listed] == []
