"""Run by CI on a built wheel: what is inside, and that nothing of torch or CUDA is linked."""

import sys
import zipfile
from pathlib import Path


def check(path: Path) -> None:
    names = zipfile.ZipFile(path).namelist()
    native = [n for n in names if n.startswith("fastsample/_native") and not n.endswith(".pyi")]
    assert len(native) == 1, native
    needed = {
        "fastsample/py.typed",
        "fastsample/_native.pyi",
        "fastsample/bundled/digits.safetensors",
        "fastsample/bundled/digits-profile.safetensors",
        "fastsample/bundled/mnist.safetensors",
        "fastsample/bundled/mnist-profile.safetensors",
        "fastsample/bundled/mnist-plans.json",
        "fastsample/ops/native.py",
        "fastsample/samplers/ddim.py",
        "fastsample/samplers/published.json",
    }
    assert needed <= set(names), needed - set(names)
    stray = [n for n in names if not n.startswith(("fastsample/", "fastsample-"))]
    assert not stray, stray
    library = zipfile.ZipFile(path).read(native[0])
    for other in (b"libtorch", b"libc10", b"libcudart.so"):
        assert other not in library, f"{native[0]} must not link {other.decode()}"
    size = path.stat().st_size / 1e6
    assert size < 6.0 + 2.5, f"{path.name} must stay under 8.5 MB with its weights, is {size:.1f}"
    print(f"{path.name}: {size:.2f} MB, {len(names)} files")


for argument in sys.argv[1:]:
    check(Path(argument))
