"""Write AUTOENCODER and BABF as a module of PLUMED's source tree.

    python python/plumed_module.py PLUMED2

PLUMED2 is the folder of PLUMED's sources, 2.10 or newer. The script writes src/plumedcv and
regtest/plumedcv there, in place of earlier ones. Then build and test PLUMED with the module:

    cd PLUMED2 && ./configure --enable-modules=plumedcv && make && make -C regtest/plumedcv

The sources are those of cpp/ in the form of PLUMED: the namespace PLMD::plumedcv, the guards, the
copyright, and a source file for each header, which PLUMED requires. If PLUMED's astyle is built
(make -C astyle), it formats them. TORCH_CV is not included, because PLUMED has PYTORCH_MODEL.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPP = Path(__file__).parents[1] / "cpp"
MODULE = "plumedcv"
FILES = ("COPYRIGHT", "Makefile", "module.md", "module.type", "module.yml")
# The names of the actions' files there: babf.h has a source file, too, and case may not count.
RENAMED = {"Autoencoder.cpp": "AutoencoderAction.cpp", "Babf.cpp": "BabfAction.cpp"}
NOT_INCLUDED = {"torch_model.h", "TorchCv.cpp", "kernel.h"}

# Files that PLUMED's git tracks in the folder of a module.
IGNORED = "/*\n" + "".join(f"!/{name}\n" for name in (".gitignore", "*.cpp", "*.h", *FILES))
PLUS = "+" * 73


def main() -> None:
    """Write the module and its tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plumed2", type=Path, help="the folder of PLUMED's sources")
    tree = parser.parse_args().plumed2
    if not (tree / "src" / "maketools" / "make.module").is_file():
        sys.exit(f"{tree}: contains no sources of PLUMED: src/maketools/make.module is missing")
    version = re.search(r"^2\.(\d+)", (tree / "VERSION.txt").read_text(), re.MULTILINE)
    if version is None or int(version[1]) < 10:
        sys.exit(f"{tree}: the module needs PLUMED 2.10 or newer")
    write_module(tree / "src" / MODULE, doxygen=int(version[1]) < 11)
    astyle = tree / "astyle" / "astyle"
    if astyle.is_file():
        sources = sorted((tree / "src" / MODULE).glob("*.[ch]*"))
        apply_astyle(astyle, tree / ".astyle.options", sources)
    tests = tree / "regtest" / MODULE
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(CPP / "plumed-module" / "regtest", tests)
    print(f"wrote {tree / 'src' / MODULE} and {tests}")


def write_module(folder: Path, *, doxygen: bool) -> None:
    """Write the sources of the module into a new folder; `doxygen` is the form of the manual."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text(IGNORED)
    for name in FILES:
        shutil.copy(CPP / "plumed-module" / name, folder)
    files = [
        path
        for subject in ("core", "actions")
        for path in (CPP / subject).iterdir()
        if path.name not in NOT_INCLUDED
    ]
    for action in [path for path in files if path.suffix == ".cpp"]:
        text = in_form_of_plumed(action.read_text(encoding="utf-8"))
        if doxygen and "//+PLUMEDOC" in text:
            text = _with_manual_in_doxygen(text)
        there = RENAMED.get(action.name, action.name)
        (folder / there).write_text(with_copyright(text), encoding="utf-8")
    for header in [path for path in files if path.suffix == ".h"]:
        guard = f"__PLUMED_{MODULE}_{header.stem}_h"
        text = in_form_of_plumed(header.read_text(encoding="utf-8"))
        text = f"#ifndef {guard}\n#define {guard}\n{text}\n#endif\n"
        (folder / header.name).write_text(with_copyright(text), encoding="utf-8")
        source = folder / f"{header.stem}.cpp"
        if not source.exists():
            text = with_copyright(f'#include "{header.name}"\n')
            source.write_text(text, encoding="utf-8")


def in_form_of_plumed(text: str) -> str:
    """Return a source of cpp/ with PLUMED's namespaces and the includes of one folder."""
    text = re.sub(r"^// (SPDX|Copyright).*\n", "", text, flags=re.MULTILINE)
    text = text.replace("#pragma once\n", "").replace('#include "../core/', '#include "')
    # PLUMED is one program: a module cannot be loaded into another kernel than its own.
    text = text.replace('#include "kernel.h"\n', "")
    text = re.sub(r"^ *check_kernel\(\);\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^namespace plumed_cv \{$", f"namespace PLMD {{\nnamespace {MODULE} {{", text, flags=re.M
    )
    return re.sub(r"^\} // namespace plumed_cv$", "}\n}", text, flags=re.MULTILINE).lstrip("\n")


def _with_manual_in_doxygen(source: str) -> str:
    begin, end = source.index("//+PLUMEDOC"), source.index("//+ENDPLUMEDOC")
    return source[:begin] + in_doxygen(source[begin:end]) + source[end:]


def in_doxygen(page: str) -> str:
    """Return a manual page, written in Markdown, for Doxygen, as PLUMED 2.10 has it."""
    text = re.sub(r"(?s)```plumed\n(.*?)```", r"\\plumedfile\n\1\\endplumedfile", page)
    text = re.sub(r"^#+ (.*)$", r"\\par \1", text, flags=re.MULTILINE)
    text = re.sub(r"(?s)\$\$(.*?)\$\$", r"\\f[\1\\f]", text)
    return re.sub(r"(?s)\$(.*?)\$", r"\\f$\1\\f$", text)


def with_copyright(text: str) -> str:
    """Return a source with the header that PLUMED's header.sh would write."""
    copyright_ = (CPP / "plumed-module" / "COPYRIGHT").read_text().rstrip("\n")
    return f"/* {PLUS}\n{copyright_}\n{PLUS} */\n{text}"


def apply_astyle(astyle: Path, options: Path, sources: list[Path]) -> None:
    """Format sources by PLUMED's astyle."""
    for source in sources:
        done = subprocess.run(
            [astyle.absolute(), f"--options={options.absolute()}"],
            input=source.read_bytes(),
            stdout=subprocess.PIPE,
            check=True,
        )
        source.write_bytes(done.stdout)


if __name__ == "__main__":
    main()
