"""Set-up behind the Makefile: a .venv with the right torch, the packages and the extension; then one command.

    python bootstrap.py NAME EXTRA COMMAND...

EXTRA names one of pyproject's optional dependencies.  Finished steps leave a stamp in .venv, so a second run
starts COMMAND at once.  The last line is the total time ("demo: 7 min 12 s").  Standard library only: this
runs before anything is installed.  Errors are one line: what is missing, and how to install it.

Which torch:
    no NVIDIA GPU            the CPU build by its full version, so that pip cannot download the CUDA build
    GPU, and this Python     that one: its packages are used, and packages that cannot be downloaded are
      has a CUDA torch         only listed (for cluster nodes without network)
    GPU otherwise            PyPI's CUDA build
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.resolve()
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
BUILD_LOG = VENV / "build.log"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

TORCH = "2.13.0"            # installed in .venv; pyproject has the supported range
TORCH_CUDA = 13             # CUDA of its PyPI build; older drivers cannot run it
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def say(line: str) -> None:
    print(line, flush=True)


def give_up(line: str) -> NoReturn:
    sys.exit(f"swiftvideo_fast: {line}")


def span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- checks of this machine ------------------------------------------------------------------------------


def find_compiler() -> str:
    """Returns the C++ compiler; exits without one that compiles C++20."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    found = next((name for name in names if shutil.which(name.split()[0])), None)
    if not found:
        give_up(f"no C++ compiler ({' or '.join(names)}): install g++ or clang, for example "
                "`apt-get install g++`, `dnf install gcc-c++` or `xcode-select --install`")
    trial = subprocess.run([*found.split(), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], text=True,
                           input="#include <span>\nint main() {}\n", capture_output=True)
    if trial.returncode:
        give_up(f"{found} does not compile C++20: install g++ 10, clang 12 or later, for example "
                "`apt-get install g++`, or name one in CXX")
    return found


def check_machine(driver: int) -> None:
    """Exits without Python headers, venv (separate packages on Debian), or a driver for our torch."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for lacks, there, package in (
            ("has no C headers", Path(sysconfig.get_path("include"), "Python.h").exists(), f"{version}-dev"),
            ("cannot make a .venv", importlib.util.find_spec("ensurepip"), f"{version}-venv")):
        if not there:
            give_up(f"{sys.executable} {lacks}: `apt-get install {package}`, or another: make PYTHON=...")
    if 0 < driver < TORCH_CUDA:
        give_up(f"torch {TORCH} needs an NVIDIA driver for CUDA {TORCH_CUDA}, this one runs CUDA {driver}: "
                "update it, or activate an environment whose torch suits it and run again")


def gpu_driver() -> int:
    """Returns the CUDA major version that the NVIDIA driver supports; 0 without a GPU."""
    if not shutil.which("nvidia-smi"):
        return 0
    shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
    version = re.search(r"CUDA Version: (\d+)", shown.stdout)
    return int(version[1]) if version and shown.returncode == 0 else 0


def in_range(version: str) -> bool:
    """Returns whether a torch version is in pyproject's range."""
    low, high = map(int, re.search(r">=2\.(\d+),<2\.(\d+)", PROJECT["project"]["dependencies"][0]).groups())
    major, minor = map(int, version.split(".")[:2])
    return major == 2 and low <= minor < high


def own_torch() -> str | None:
    """Returns the torch version of this Python; None unless it is a CUDA build in pyproject's range."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    cuda = subprocess.run([sys.executable, "-c", "import torch, sys; sys.exit(not torch.version.cuda)"])
    return version if in_range(version) and cuda.returncode == 0 else None


# --- subprocesses and stamps -----------------------------------------------------------------------------


def start(*command: str | Path, log: Path = LOG) -> subprocess.Popen:
    with log.open("a") as out:
        print("\n$", *command, file=out, flush=True)
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=ROOT)


def finish(process: subprocess.Popen, log: Path = LOG) -> None:
    if process.wait():
        say("\n".join(log.read_text().splitlines()[-15:]))
        give_up(f"set-up failed; the full log is {log.relative_to(ROOT)}")


def pip_install(*words: str) -> subprocess.Popen:
    """Starts pip install without byte-compiling, half of pip's time and mostly for unused modules."""
    return start(PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", *words)


def digest(*parts) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def done(step: str, key: str) -> bool:
    stamp = VENV / f"{step}.stamp"
    return stamp.exists() and stamp.read_text() == key


def remember(step: str, key: str) -> None:
    (VENV / f"{step}.stamp").write_text(key)


# --- steps -----------------------------------------------------------------------------------------------


def make_venv(borrow: bool) -> None:
    """Creates an empty .venv; with `borrow` it also sees the packages of this Python, including pip."""
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, with_pip=not borrow, symlinks=True)
    if borrow:      # --system-site-packages would show the base Python's packages, not those of an outer venv
        site = next(VENV.glob("lib/python*/site-packages"))
        outer = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        (site / "borrowed.pth").write_text("\n".join(outer) + "\n")


def install_torch(driver: int) -> str:
    """Installs torch, from the user's indexes first, then PyTorch's; returns its version."""
    if driver or platform.system() != "Linux":
        finish(pip_install(f"torch=={TORCH}"))
        return TORCH
    version = f"{TORCH}+cpu"
    sources = [], ["--extra-index-url", CPU_INDEX]
    if all(pip_install(f"torch=={version}", *source).wait() for source in sources):
        give_up(f"no CPU build of torch {TORCH} for Python {platform.python_version()} in your indexes or at "
                f"{CPU_INDEX} ({LOG.relative_to(ROOT)}): try another Python, make PYTHON=...")
    return version


def packages(extra: str) -> Iterator[str]:
    """Yields the extra's requirements, including those of extras it refers to."""
    for need in PROJECT["project"]["optional-dependencies"][extra]:
        if need.startswith("swiftvideo_fast["):
            for other in re.findall(r"\w+", need)[1:]:
                yield from packages(other)
        else:
            yield need


def install_packages(needs: list[str], torch: str) -> None:
    """Installs the requirements, with torch pinned by a constraint."""
    constraints = VENV / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    if not any(VENV.glob("lib/python*/site-packages/borrowed.pth")):
        finish(pip_install("--constraint", str(constraints), *needs))
    elif pip_install("--retries", "1", "--timeout", "5", "--constraint", str(constraints), *needs).wait():
        names = [re.match(r"[\w-]+", need)[0] for need in needs]
        lacking = [name for name in names if not any(metadata.distributions(name=name))]
        say(f"set-up: not available here, left out: {', '.join(lacking)} (make clean, to try again)")


def set_up(extra: str) -> None:
    begin = time.monotonic()
    os.environ["PATH"] = f"{PYTHON.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    compiler, driver = find_compiler(), gpu_driver()

    venv_key = digest(*sys.version_info[:2], bool(driver), TORCH)
    if not (PYTHON.exists() and done("venv", venv_key)):
        if Path(sys.prefix) == VENV:
            give_up(".venv is out of date and active: `deactivate` it, so that it can be recreated")
        say(f"set-up: Python {platform.python_version()}, {compiler}, "
            + (f"NVIDIA GPU with CUDA {driver}" if driver else "no NVIDIA GPU"))
        if torch := own_torch() if driver else None:
            say(f"set-up: torch {torch} of {sys.prefix}")
            make_venv(borrow=True)
        else:
            check_machine(driver)
            say(f"set-up: torch {TORCH}, the {'CUDA' if driver else 'CPU'} build ...")
            make_venv(borrow=False)
            torch = install_torch(driver)
        remember("torch", torch)
        remember("venv", venv_key)
    torch = (VENV / "torch.stamp").read_text()

    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*.*"))]
    build_key = digest(torch, *[(path.relative_to(ROOT), digest(path.read_bytes())) for path in sources])
    extension = ROOT / "swiftvideo_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiling = None
    if not (extension.exists() and done("build", build_key)):
        say("set-up: the C++ extension, compiling in the background ...")
        BUILD_LOG.unlink(missing_ok=True)
        install_packages(PROJECT["build-system"]["requires"], torch)
        compiling = start(PYTHON, "setup.py", "build_ext", "--inplace", log=BUILD_LOG)

    needs = [*PROJECT["project"]["dependencies"][1:], *packages(extra)]
    packages_key = digest(torch, needs)
    if not done(f"packages-{extra}", packages_key):
        say(f"set-up: {len(needs)} packages ({extra}), torch pinned to {torch} ...")
        install_packages(needs, torch)
        remember(f"packages-{extra}", packages_key)

    if compiling:
        finish(compiling, BUILD_LOG)
        remember("build", build_key)
    install_key = digest(PROJECT, sources[0].read_bytes())
    if not done("install", install_key):
        finish(pip_install("--no-deps", "--no-build-isolation", "--no-index", "--editable", "."))
        remember("install", install_key)
    if (took := time.monotonic() - begin) > 5:
        say(f"set-up: done in {span(took)}")


def main(name: str, extra: str, *command: str) -> int:
    begin = time.monotonic()
    try:
        set_up(extra)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    environment = os.environ.copy()
    environment.pop("PYTHONDONTWRITEBYTECODE", None)    # every process would compile torch's modules
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the command handles Ctrl-C
    code = process.wait()
    say(f"{name}: {span(time.monotonic() - begin)}")
    if name == "demo" and not code:
        say(f"to put `swiftvideo` on the PATH: source {os.path.relpath(VENV, Path.cwd())}/bin/activate")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) < 4:
        give_up("python bootstrap.py NAME EXTRA COMMAND...; `make help` lists what to run instead")
    sys.exit(main(*sys.argv[1:]))
