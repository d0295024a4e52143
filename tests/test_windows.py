"""Every module can be imported where there is no POSIX. Nothing here runs on Windows itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Once with everything, for other packages, which look at the platform and would be right to use what Linux has; then again,
# the package's own modules only, without it.
IMPORT = """
import importlib, os, pkgutil, signal, sys
import lior_jax

def import_all():
    importlib.import_module("lior_jax")
    for module in pkgutil.walk_packages(sys.modules["lior_jax"].__path__, "lior_jax."):
        importlib.import_module(module.name)
    return [name for name in sys.modules if name.split(".")[0] == "lior_jax"]

names = import_all()
for name in names:
    del sys.modules[name]
for name in ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
WINDOWS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
for name in dir(signal):
    if name.startswith("SIG") and name.isupper() and "_" not in name and name not in WINDOWS:
        delattr(signal, name)
POSIX = "fchmod fchown fork forkpty getegid geteuid getgid getpgid getuid kill killpg lchown mkfifo mknod nice"
POSIX += " posix_fadvise posix_fallocate posix_spawn pread pwrite sched_getaffinity sendfile set_blocking setsid sync sysconf"
POSIX += " uname wait O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC"
for name in POSIX.split():
    delattr(os, name)
assert import_all() == names
print(len(names))
"""


def test_every_module_can_be_imported_without_posix():
    modules = list((ROOT / "lior_jax").rglob("*.py"))
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)
