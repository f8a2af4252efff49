"""Compiles the kernels of the point-cloud metrics where there is a C++ compiler; all else is in pyproject.toml."""

import platform
import sys

from setuptools import Extension, find_packages, setup

FOLDER = "modalities/pointcloud/kernels"
SOURCES = [f"{FOLDER}/{name}.cpp" for name in ("bound", "chamfer", "emd", "level", "order")]
HEADERS = [f"{FOLDER}/{name}.h" for name in ("auction", "cloud", "kernels", "lanes", "matching", "transform")]
# math-errno and trapping-math only keep what nobody reads (errno after sqrt, floating-point exceptions) and
# stand in the way of vectors. No -ffast-math: the certificate needs float64 to mean what it says.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
# Not -march=native: a wheel from pip's cache may meet an older processor. One library for each level of the
# instruction set; the one that fits is taken when it is loaded.
LEVELS = {"base": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}

x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
setup(
    packages=[*find_packages(include=["ditmoe*", "modalities*"]), "ditmoe.configs"],
    ext_modules=[
        Extension(
            f"modalities.pointcloud.kernels.{level}",
            SOURCES,
            depends=HEADERS,
            language="c++",
            extra_compile_args=FLAGS + flags,
            optional=True,  # without a compiler the install succeeds, and the metrics take SciPy
        )
        for level, flags in LEVELS.items()
        if x86 or level == "base"
    ],
)
