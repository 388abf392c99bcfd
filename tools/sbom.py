"""Write bills of materials into an environment with the program, by cyclonedx-bom: ``python sbom.py PREFIX``.

``PREFIX/sboms`` gets two documents of CycloneDX: of the Python packages, and of the Rust crates, as maturin has put it
into the wheel (PEP 770). Image, deb and rpm have them in ``/opt/intermediate-server``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

DIRECTORY, PACKAGES, CRATES = "sboms", "python.cdx.json", "rust.cdx.json"


def write(prefix: Path) -> None:
    """Add the directory; the environment is complete."""
    directory = prefix / DIRECTORY
    directory.mkdir()
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    subprocess.run([*command, "--output-file", directory / PACKAGES, prefix / "bin/python"], check=True)
    site = "lib/python*/site-packages/intermediate_server-*.dist-info"
    (crates,) = prefix.glob(f"{site}/sboms/*.cyclonedx.json")
    shutil.copyfile(crates, directory / CRATES)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
