"""The machine a run finds itself on: home, user and caches that must exist before heavy imports, cores, memory, device."""

from __future__ import annotations

import atexit
import gc
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from tractode.errors import ResourceUnavailableError

GIB = 2**30

# Everything below writes to the home folder unless told otherwise; in a read-only container that is fatal or noisy.
_CACHES = {
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "DIPY_HOME": "dipy",
    "NIPYPE_CONFIG_DIR": "nipype",
}
_ALWAYS = {
    "NO_ET": "1",  # nipype's usage reporting: this software sends nothing
    "NIPYPE_NO_ET": "1",
    "TEMPLATEFLOW_AUTOUPDATE": "off",  # no look at the network on import
    "MPLBACKEND": "Agg",
}
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def prepare(environ: MutableMapping[str, str] = os.environ) -> Path | None:
    """Make the environment fit for heavy imports; call it before them. Returns the stand-in home if one was needed.

    Without a home, importing templateflow or pybids raises; without a user name, nipype's SLURM plugin, matplotlib
    and torch do. A home that cannot be written stays the home (templates may lie in it) but caches go elsewhere.
    """
    for name, value in _ALWAYS.items():
        environ.setdefault(name, value)
    user = _user(environ)
    for name in ("USER", "LOGNAME"):
        if not environ.get(name):
            environ[name] = user
    home = environ.get("HOME", "")
    has_home = bool(home) and Path(home).is_dir()
    if has_home and os.access(home, os.W_OK | os.X_OK):
        return None
    stand_in = Path(tempfile.mkdtemp(prefix="tractode-home-"))
    atexit.register(_remove, stand_in, os.getpid())
    if not has_home:
        environ["HOME"] = str(stand_in)
    for name, folder in _CACHES.items():
        if not environ.get(name):
            (stand_in / folder).mkdir(exist_ok=True)
            environ[name] = str(stand_in / folder)
    return stand_in


def _user(environ: MutableMapping[str, str]) -> str:
    for name in ("LOGNAME", "USER"):
        if environ.get(name):
            return environ[name]
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without an entry in the password file, as in `docker run --user 54321`
        return f"uid{os.getuid()}"


def _remove(folder: Path, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # exit handlers also run in forked children
        shutil.rmtree(folder, ignore_errors=True)


def set_threads(omp_nthreads: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Threads per process for every numeric library; call it before they are imported."""
    for name in _THREADS:
        environ[name] = str(omp_nthreads)


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import libraries that stay until the process ends: the garbage collector does not go through them, now or later.

    That is a third of the time that torch takes to load and to leave, and in forked processes the memory they share stays shared.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def count_cpus() -> int:
    """CPUs this process may use: affinity mask and control-group quota, not what the machine has."""
    n = len(os.sched_getaffinity(0))
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return max(1, min(n, quota) if quota else n)


def _cpu_quota(root: Path) -> int | None:
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return max(1, round(int(limit) / int(period)))


def memory_limit_gb(asked: float | None = None, cgroup_root: Path = Path("/sys/fs/cgroup")) -> float:
    """GiB that this run may use: the least of what was asked, the control group's limit and the machine's memory."""
    import psutil

    limits = [psutil.virtual_memory().total / GIB]
    if asked is not None:
        limits.append(asked)
    limits.extend(_cgroup_limits(cgroup_root))
    return min(limits)


def _cgroup_limits(root: Path, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Limits of this process's control group and of all those above it (a batch system sets an upper one)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    folders = {root, root / "memory"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / "memory" if controllers else root
            leaf = base / path.lstrip("/")
            folders |= {leaf, *(parent for parent in leaf.parents if parent.is_relative_to(base))}
    found = []
    for folder in folders:
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 2**60:  # v1 says "unlimited" with a huge number
                found.append(int(text) / GIB)
    return found


def resolve_device(asked: str) -> tuple[str, str | None]:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` → the device to use and a note where ``auto`` fell back.

    A visible GPU is believed only after it has computed something: a driver too old for the runtime, or a GPU too
    new for the build, lists the device and fails at the first kernel.

    Raises
    ------
    ResourceUnavailableError
        A GPU was asked for and cannot compute.
    """
    if asked == "cpu":
        return "cpu", None
    wanted = "cuda:0" if asked in ("auto", "cuda") else asked
    problem = _cuda_problem(wanted)
    if problem is None:
        return wanted, None
    if asked == "auto":
        return "cpu", f"No usable GPU ({problem}); computing on the CPU."
    raise ResourceUnavailableError(
        f"--device {asked} cannot be used ({problem})",
        id="E-DEVICE-CUDA",
        needed="a visible CUDA GPU that this build of torch can compute on",
        fix="make the GPU visible (docker --gpus all, apptainer --nv), or run with --device cpu",
    )


def _cuda_problem(device: str) -> str | None:
    import torch

    versions = f"torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}"
    if not torch.cuda.is_available():
        return f"no CUDA device is visible, {versions}"
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
    try:
        if float((torch.ones(2, device=device) + 1).sum()) != 4.0:
            return f"the device computes wrongly, {versions}"
    except RuntimeError as error:
        return f"{str(error).splitlines()[0]}, {versions}"
    return None
