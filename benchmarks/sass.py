"""Lists registers, spills and instructions per element of the CUDA kernels, without a GPU.

    python benchmarks/sass.py [--arch sm_90] [--json FILE] [--mix KERNEL]

Compiles csrc/cuda/*.cu with nvcc, takes registers and spills from ptxas and counts the instructions
of each kernel's element loop in the disassembly: everything between the loop's first instruction
and its backward branch, divided by the elements of one pass. nvdisasm comes from PATH or from
PyPI's nvidia-cuda-nvdisasm. A kernel with spills or local memory makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", "-cubin", f"-I{ROOT / 'csrc'}"]
TYPES = {
    "f": ("float32", 4),
    "d": ("float64", 4),
    "8BFloat16": ("bfloat16", 8),
    "7Float16": ("float16", 8),
}
VARIANTS = ("plain", "noisy", "seeded", "general")
ACCESS = ("vector", "scalar", "channels_last")


def noisy_width() -> int:
    """Return the elements of 16 bits that a noisy kernel takes at once with vector accesses."""
    source = (ROOT / "csrc/gpu/packs.h").read_text()
    return int(re.search(r"constexpr int noisy_width = (\d+);", source).group(1))


def find_nvdisasm() -> str:
    path = shutil.which("nvdisasm")
    if path:
        return path
    try:
        import nvidia
    except ImportError:
        nvidia = None
    for folder in getattr(nvidia, "__path__", []):
        for candidate in Path(folder).rglob("nvdisasm"):
            return str(candidate)
    sys.exit("sass: nvdisasm must be installed, got none; pip install nvidia-cuda-nvdisasm")


def describe(mangled: str) -> tuple[str, int] | None:
    """Return (name such as 'step float32 noisy vector', elements per pass) of a mangled name."""
    match = re.search(
        r"\d+(step|noise|backward)_kernelI(?:NS_)?(f|d|8BFloat16|7Float16)E?(.*)", mangled
    )
    if not match:
        return None
    name, code, rest = match.groups()
    dtype, width = TYPES[code]
    variant = re.search(r"VariantE(\d)", rest)
    variant = VARIANTS[int(variant.group(1))] if variant else ""
    access = ACCESS[int(re.search(r"AccessE(\d)", rest).group(1))]
    if access == "channels_last":
        width = 4
    elif access == "vector" and width == 8 and variant in ("noisy", "seeded"):
        width = noisy_width()
    parts = [name, dtype, *([variant] if variant else []), access]
    return " ".join(parts), width


def resources(log: str) -> dict[str, dict[str, int]]:
    """Read registers, stack frame and spills of every kernel from the output of ``ptxas -v``."""
    used = {}
    for block in log.split("Compiling entry function")[1:]:
        name = re.search(r"'(\S+)'", block).group(1)
        frame, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", block).groups(),
        )
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        used[name] = {"registers": registers, "stack": frame, "spills": stores + loads}
    return used


def loops(sass: str) -> dict[str, list[str]]:
    """Return the opcodes of the longest loop of every kernel, by its mangled name."""
    longest = {}
    for section in re.split(r"\n\s*\.section\s+\.text\.", sass)[1:]:
        name = section.split(",", 1)[0]
        labels: dict[str, int] = {}
        opcodes: list[str] = []
        best: list[str] = []
        for line in section.splitlines():
            label = re.match(r"(\.L_x_\d+):", line)
            if label:
                labels[label.group(1)] = len(opcodes)
            instruction = re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line)
            if not instruction:
                continue
            opcodes.append(instruction.group(2))
            target = re.search(r"`\((\.L_x_\d+)\)", instruction.group(3))
            if instruction.group(2).startswith("BRA") and target and target.group(1) in labels:
                body = opcodes[labels[target.group(1)] :]
                best = body if len(body) > len(best) else best
        longest[name] = best
    return longest


def measure(arch: str) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            cubin = Path(folder) / f"{source.stem}.cubin"
            command = ["nvcc", *FLAGS, f"-arch={arch}", "-o", str(cubin), str(source)]
            log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
            sass = subprocess.run(
                [find_nvdisasm(), "-c", str(cubin)], check=True, capture_output=True, text=True
            ).stdout
            bodies = loops(sass)
            for mangled, used in resources(log).items():
                described = describe(mangled)
                if described is None:
                    continue
                label, width = described
                body = bodies[mangled]
                rows.append(
                    {
                        "kernel": label,
                        **used,
                        "loop": len(body),
                        "per_element": round(len(body) / width, 1),
                        "local": sum(op.startswith(("LDL", "STL")) for op in body),
                        "mix": dict(
                            collections.Counter(op.split(".")[0] for op in body).most_common()
                        ),
                    }
                )
    return sorted(rows, key=lambda row: row["kernel"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--mix", help="print the instruction mix of kernels whose name contains this"
    )
    options = parser.parse_args()
    rows = measure(options.arch)
    print(f"{options.arch:34}  registers  spills  stack  local  loop  per element")
    for row in rows:
        print(
            f"{row['kernel']:34}  {row['registers']:9}  {row['spills']:6}  {row['stack']:5}  "
            f"{row['local']:5}  {row['loop']:4}  {row['per_element']:11}"
        )
        if options.mix and options.mix in row["kernel"]:
            print("   ", row["mix"])
    if options.json:
        options.json.write_text(
            json.dumps({"arch": options.arch, "kernels": rows}, indent=1) + "\n"
        )
    if any(row["spills"] or row["stack"] or row["local"] for row in rows):
        sys.exit("sass: a kernel spills or uses local memory")


if __name__ == "__main__":
    main()
