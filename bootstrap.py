"""Set-up behind the Makefile: a .venv with the right torch, the packages and the extension; then one command.

    python bootstrap.py NAME EXTRA -- COMMAND...

EXTRA is a set of pyproject's optional dependencies.  Each step leaves a stamp in .venv, so a second run goes
straight to COMMAND, and ends with the time that all of it took ("demo: 7 min 12 s").  Standard library only, as
it runs before anything is installed.  Errors are one line: what is missing and how to get it.

Which torch:
    no NVIDIA GPU          the CPU build by its full name, so that CUDA's gigabytes cannot come instead of it
    GPU, torch 2.11-2.15   the one that this Python has; its packages are borrowed and nothing else is fetched
      with CUDA in it      that cannot be had (a cluster node without network works)
    GPU, no such torch     PyPI's CUDA build
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
CONSTRAINTS = VENV / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TORCH = "2.13.0"                    # what .venv gets; pyproject has the range that works
TORCH_CUDA = 13                     # the CUDA of its PyPI build; an older driver cannot run it
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def say(line: str) -> None:
    print(line, flush=True)


def span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- what this machine has -------------------------------------------------------------------------------


def find_compiler() -> str:
    """The C++ compiler, if it compiles C++20; else the end, with a line that names what to install."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    found = next(filter(shutil.which, names), None)
    if not found:
        sys.exit(f"swiftvideo_fast: no C++ compiler ({' or '.join(names)}): install g++ or clang, for example "
                 "`apt-get install g++`, `dnf install gcc-c++` or `xcode-select --install`")
    trial = subprocess.run([found, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], text=True,
                           input="#include <span>\nint main() {}\n", capture_output=True)
    if trial.returncode:
        sys.exit(f"swiftvideo_fast: {found} does not compile C++20: install g++ 10 or clang 12 or later, for "
                 "example `apt-get install g++`, or name another in CXX")
    return found


def check_python() -> None:
    """venv, pip and the headers: Debian keeps each in a package of its own."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit(f"swiftvideo_fast: {sys.executable} has no C headers: `apt-get install {version}-dev`, "
                 "or name another Python: make PYTHON=...")
    if not importlib.util.find_spec("ensurepip"):
        sys.exit(f"swiftvideo_fast: {sys.executable} cannot make a .venv: `apt-get install {version}-venv`, "
                 "or name another Python: make PYTHON=...")


def gpu_driver() -> int:
    """The CUDA major version that the NVIDIA driver runs; 0 without a GPU."""
    if not shutil.which("nvidia-smi"):
        return 0
    shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
    version = re.search(r"CUDA Version: (\d+)", shown.stdout)
    return int(version[1]) if version and not shown.returncode else 0


def own_torch() -> str | None:
    """The torch of this Python, where it is a CUDA build in pyproject's range."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    low, high = re.search(r">=2\.(\d+),<2\.(\d+)", PROJECT["project"]["dependencies"][0]).groups()
    in_range = re.match(r"2\.(\d+)", version) and int(low) <= int(version.split(".")[1]) < int(high)
    cuda = subprocess.run([sys.executable, "-c", "import torch; assert torch.version.cuda"], capture_output=True)
    return version if in_range and not cuda.returncode else None


# --- steps -----------------------------------------------------------------------------------------------


def run(*command, must: bool = True) -> bool:
    """Run into the log; where it must work and does not, end with the log's last lines."""
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
    if done.returncode and must:
        say("\n".join(LOG.read_text().splitlines()[-15:]))
        sys.exit(f"set-up failed; all of it is in {LOG.relative_to(ROOT)}")
    return not done.returncode


def pip(*words: str, must: bool = True) -> bool:
    return run(PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *words, must=must)


def digest(*parts) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def fresh(name: str, key: str) -> bool:
    stamp = VENV / f"{name}.stamp"
    return stamp.exists() and stamp.read_text() == key


def stamp(name: str, key: str) -> None:
    (VENV / f"{name}.stamp").write_text(key)


def make_venv(borrow: bool) -> None:
    """An empty .venv; with `borrow` it sees the packages of this Python, pip among them."""
    shutil.rmtree(VENV, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", *["--without-pip"] * borrow, VENV], capture_output=True,
                          text=True)
    if done.returncode:
        sys.exit(f"swiftvideo_fast: {sys.executable} cannot make a .venv: {done.stderr.strip()}")
    if borrow:      # --system-site-packages would show the base Python's packages, not those of an outer venv
        site = next(VENV.glob("lib/python*/site-packages"))
        outer = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        (site / "borrowed.pth").write_text("\n".join(outer) + "\n")


def install_torch(driver: int) -> str:
    """The version installed.  Indexes that the user has configured come before PyTorch's own."""
    if driver or platform.system() != "Linux":
        if 0 < driver < TORCH_CUDA:
            sys.exit(f"swiftvideo_fast: torch {TORCH} wants an NVIDIA driver for CUDA {TORCH_CUDA}, this one runs "
                     f"CUDA {driver}: update it, or activate an environment that has a torch for it and run again")
        pip("install", f"torch=={TORCH}")
        return TORCH
    version = f"{TORCH}+cpu"
    if not pip("install", f"torch=={version}", must=False):
        pip("install", f"torch=={version}", "--extra-index-url", CPU_INDEX)
    return version


def requirements(extra: str) -> list[str]:
    """What the build, the package and its extra need, without torch, which is there."""
    def expand(extra: str) -> list[str]:
        wanted = PROJECT["project"]["optional-dependencies"][extra]
        return [r for w in wanted for r in
                (sum(map(expand, re.findall(r"\w+", w.partition("[")[2])), []) if "swiftvideo" in w else [w])]
    needs = PROJECT["build-system"]["requires"] + PROJECT["project"]["dependencies"][1:] + expand(extra)
    return sorted(set(needs))


def install_packages(extra: str, torch: str, borrowed: bool) -> None:
    CONSTRAINTS.write_text(f"torch=={torch}\n")
    needs = requirements(extra)
    if pip("install", "-c", str(CONSTRAINTS), *["--retries=1"] * borrowed, *needs, must=not borrowed):
        return
    names = [re.match(r"[\w-]+", need)[0] for need in needs]
    have = "from importlib.metadata import version; import sys; version(sys.argv[1])"
    lacking = [n for n in names if subprocess.run([PYTHON, "-c", have, n], capture_output=True).returncode]
    say(f"  not to be had here, so what needs them will say so: {', '.join(lacking)}")


def set_up(extra: str) -> None:
    compiler = find_compiler()
    driver = gpu_driver()
    torch = own_torch() if driver else None
    borrowed = torch is not None
    if not borrowed:
        check_python()

    venv_key = digest(sys.version, sys.prefix, bool(driver), borrowed, TORCH)
    packages_key = digest(venv_key, requirements(extra))
    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *(ROOT / "csrc").rglob("*")]
    build_key = digest(venv_key, *[(p, digest(p.read_bytes())) for p in sorted(sources) if p.is_file()])
    built = any((ROOT / "swiftvideo_fast").glob("_C*.so"))

    begin = time.monotonic()
    if not fresh("venv", venv_key):
        gpu = f"GPU (CUDA {driver})" if driver else "no NVIDIA GPU"
        say(f"set-up: Python {platform.python_version()}, {compiler}, {gpu}")
        make_venv(borrowed)
        if borrowed:
            say(f"set-up: torch {torch} as {sys.executable} has it")
        else:
            say(f"set-up: torch {TORCH}, the {'CUDA' if driver else 'CPU'} build ...")
            torch = install_torch(driver)
        stamp("torch", torch)
        stamp("venv", venv_key)
    if not fresh(f"packages-{extra}", packages_key):
        torch = (VENV / "torch.stamp").read_text()
        say(f"set-up: {len(requirements(extra))} packages ({extra}), torch held at {torch} ...")
        install_packages(extra, torch, borrowed)
        stamp(f"packages-{extra}", packages_key)
    if not (built and fresh("build", build_key)):
        say("set-up: swiftvideo_fast and its C++ extension ...")
        pip("install", "--no-deps", "--no-build-isolation", "--no-index", "-e", ".")
        stamp("build", build_key)
    if time.monotonic() - begin > 2:
        say(f"set-up: {span(time.monotonic() - begin)}")


def main(name: str, extra: str, _: str, *command: str) -> int:
    begin = time.monotonic()
    try:
        set_up(extra)
        code = subprocess.run(command, cwd=ROOT).returncode
    except KeyboardInterrupt:
        code = 130
    say(f"{name}: {span(time.monotonic() - begin)}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
