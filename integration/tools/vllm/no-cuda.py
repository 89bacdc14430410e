"""Lets torch's CUDA build run without NVIDIA's libraries, on the CPU: no-cuda.py TORCH_LIB_DIR

PyPI has no CPU build of torch for Linux on x86. The CUDA build is linked against NVIDIA's libraries, 3.4 GB, which a machine
without a GPU loads and never uses. This makes one small library with the functions that torch wants of them, each of which
says that there is no device, and links it under the libraries' names. It needs a C compiler and readelf.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

STAND_IN = "libno-cuda.so"
NO_DEVICE = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE; not 0, which says success, for the other libraries
NVIDIAS = re.compile(r"lib(cu|nv|nccl)")
FUNCTIONS = re.compile(r"_*(cu|nv|nccl)")


def symbols(library):
    """Returns the names of the libraries that a library needs, and its dynamic symbols as (name, version, defined)."""
    needed, found = set(), set()
    text = subprocess.run(["readelf", "-dW", "--dyn-syms", library], check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        if match := re.search(r"\(NEEDED\).*\[(.*)\]", line):
            needed.add(match[1])
        fields = line.split()
        if len(fields) >= 8 and fields[0].rstrip(":").isdigit():
            name, _, version = fields[7].partition("@")
            found.add((name, version.strip("@"), fields[6] != "UND"))
    return needed, found


def compile_stand_in(out, wanted):
    """wanted are pairs of a function's name and version. Functions that begin with _ register kernels and return pointers."""
    versions = collections.defaultdict(list)
    for name, version in sorted(wanted):
        versions[version].append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = pathlib.Path(folder, "stand-in.c"), pathlib.Path(folder, "versions")
        source.write_text("".join(
            f"long {name}(void) {{ return {0 if name.startswith('_') else NO_DEVICE}; }}\n" for name in sorted({n for n, _ in wanted})))
        script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items() if version))
        subprocess.check_call(["cc", "-shared", "-fPIC", "-w", source, f"-Wl,--version-script={script}", "-o", out])


def main(folder):
    libraries = [p for p in [*folder.glob("*.so*"), *folder.parent.glob("_C*.so")] if not p.is_symlink() and p.name != STAND_IN]
    needed, wanted, defined = set(), set(), set()
    for library in libraries:
        needs, found = symbols(library)
        needed |= needs
        wanted |= {(name, version) for name, version, here in found if not here and FUNCTIONS.match(name)}
        defined |= {name for name, _, here in found if here}
    compile_stand_in(folder / STAND_IN, {w for w in wanted if w[0] not in defined})
    for name in needed - {p.name for p in libraries}:
        if NVIDIAS.match(name):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(STAND_IN)


main(pathlib.Path(sys.argv[1]))
