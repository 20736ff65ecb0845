"""Builds the wheel and proves that it works on its own: contents, size, and a demo where nothing else is installed.

The environment borrows the dependencies of the one that runs this script instead of downloading torch a second time;
that the wheel declares all it imports is tested in tests/test_architecture.py.
"""

import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_DATA_BYTES = 6_000_000
"""Largest size of the bundled data inside the wheel."""


def build_wheel(folder: Path) -> Path:
    """The freshly built wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("halfseen-*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Every file of the package is inside, the licence too, no bytecode, and the bundled data is small."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    package = ROOT / "src" / "halfseen"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(ROOT / "src").as_posix() for path in files}
    if missing := expected - sizes.keys():
        sys.exit(f"{wheel.name} lacks {sorted(missing)}")
    if strays := [name for name in sizes if name not in expected and ".dist-info/" not in name]:
        sys.exit(f"{wheel.name} has files that are not in the package: {strays}")
    if not any(name.endswith("/licenses/LICENSE") for name in sizes):
        sys.exit(f"{wheel.name} carries no LICENSE")
    data = sum(size for name, size in sizes.items() if name.startswith("halfseen/data/assets/"))
    if not 0 < data <= MAX_DATA_BYTES:
        sys.exit(f"{wheel.name}: bundled data takes {data:,} bytes, allowed are 1 to {MAX_DATA_BYTES:,}")
    print(f"{wheel.name}: {len(sizes)} files, {wheel.stat().st_size:,} bytes, bundled data {data:,} bytes")


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with nothing but the wheel; returns the folder of its commands."""
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    command = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    subprocess.run([*command, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # A .pth file adds our site-packages but not the .pth files in there: this checkout's editable install stays unseen.
    (own,) = folder.glob("**/site-packages")
    (own / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return scripts


def run_demo(scripts: Path, folder: Path) -> None:
    """`halfseen demo --quick` in an empty folder, by the installed command."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    where = [str(scripts / "python"), "-c", "import halfseen; print(halfseen.__file__)"]
    origin = subprocess.run(where, check=True, cwd=folder, env=environment, capture_output=True, text=True).stdout
    if not Path(origin.strip()).is_relative_to(scripts.parent):
        sys.exit(f"the demo would run {origin.strip()}, not the installed wheel")
    subprocess.run([str(scripts / "halfseen"), "demo", "--quick"], check=True, cwd=folder, env=environment)
    reports = list(folder.glob("runs/*/report.html"))
    encoders = list(folder.glob("runs/*/encoder.safetensors"))
    if not reports or not encoders:
        sys.exit("the demo ended without a report or an encoder")
    print(f"The wheel's demo wrote {reports[0].relative_to(folder)}")


def main() -> None:
    """Builds, looks inside, installs, runs."""
    wheel = build_wheel(ROOT / "dist")
    check_contents(wheel)
    with tempfile.TemporaryDirectory(prefix="halfseen-wheel-") as folder:
        scripts = install(wheel, Path(folder).resolve() / "venv")
        work = Path(folder).resolve() / "work"
        work.mkdir()
        run_demo(scripts, work)


if __name__ == "__main__":
    main()
