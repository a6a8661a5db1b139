"""setup.py - how the extension shm_engine._core is compiled.

Why:        two kinds of C meet in one extension: the core, written by hand, has to pass every
            warning as an error; the file that Cython writes cannot. So the core is compiled
            first, each file with its own flags, and its objects are handed to the linker.
Used by:    pip (through pyproject.toml) and `make .venv`
Errors:     a compiler's message ends the build
Cost:       an object is compiled again only when its source or any header is newer
"""

from __future__ import annotations

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = Path("shm_engine")
GLUE = PACKAGE / "_core.pyx"
CORE_SOURCES = sorted(str(path) for path in PACKAGE.glob("core/*.c"))
CORE_SOURCES.append(str(PACKAGE / "codec.c"))
CORE_HEADERS = sorted(str(path) for kind in ("*.h", "core/*.h") for path in PACKAGE.glob(kind))
GLUE_PARTS = sorted(str(path) for kind in ("*.pxd", "*.pxi") for path in PACKAGE.glob(kind))

CORE_FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror"]
# What Cython generates is not ours to repair.
GLUE_FLAGS = ["-std=c11", "-O3", "-w"]
MACROS: list[tuple[str, str | None]] = [("_GNU_SOURCE", None)]


def is_older(target: str, sources: list[str]) -> bool:
    """Whether `target` is missing or older than any of `sources`."""
    if not os.path.exists(target):
        return True
    built = os.path.getmtime(target)
    return any(os.path.getmtime(source) > built for source in sources)


class BuildCore(build_ext):
    """Compiles the core with strict flags, then the glue, and links them."""

    def build_extension(self, ext: Extension) -> None:
        """Builds `ext`, unless what is there is newer than all it is made of."""
        target = self.get_ext_fullpath(ext.name)
        inputs = [str(path) for path in (*ext.sources, *ext.depends)]
        if not (self.force or is_older(target, inputs)):
            return
        ext.extra_objects = [*ext.extra_objects, *self.compile_core()]
        ext.sources = [self.translate_glue(ext)]
        super().build_extension(ext)

    def compile_core(self) -> list[str]:
        """Compiles every core/*.c that needs it; returns all the objects."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.compile_core_file, CORE_SOURCES))

    def compile_core_file(self, source: str) -> str:
        """Compiles one C file of the core if it needs it; returns its object."""
        [target] = self.compiler.object_filenames([source], output_dir=self.build_temp)
        if self.force or is_older(target, [source, "setup.py", *CORE_HEADERS]):
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=MACROS,
                include_dirs=[str(PACKAGE), str(PACKAGE / "core")],
                debug=self.debug,
                extra_postargs=CORE_FLAGS,
            )
        return cast(str, target)

    def translate_glue(self, ext: Extension) -> str:
        """Has Cython write the C file of the glue below build/; returns its path."""
        from Cython.Build import cythonize

        [translated] = cythonize(  # type: ignore[no-untyped-call]
            [Extension(ext.name, list(ext.sources), depends=GLUE_PARTS)],
            build_dir=str(Path("build") / f"cython-{sysconfig.get_python_version()}"),
            compiler_directives={"language_level": "3"},
            force=self.force,
        )
        return cast(str, translated.sources[0])


setup(
    cmdclass={"build_ext": BuildCore},
    ext_modules=[
        Extension(
            "shm_engine._core",
            sources=[str(GLUE)],
            depends=["setup.py", *CORE_SOURCES, *CORE_HEADERS, *GLUE_PARTS],
            include_dirs=[str(PACKAGE), str(PACKAGE / "core")],
            define_macros=MACROS,
            extra_compile_args=GLUE_FLAGS,
            libraries=["pthread", "rt"],
        )
    ],
)
