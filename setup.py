"""The one compiled part: pathfm runs without it (see docs/adr/0003-optional-roi-extension.md)."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pathfm_cli.wsi._roi",
            sources=["pathfm_cli/wsi/_roi.c"],
            libraries=["jpeg"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
