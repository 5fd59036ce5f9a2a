"""The example backend outside the tree: built against the installed package, then conformance."""

from __future__ import annotations

import pathlib

import pytest
from conftest import ROOT, run

EXAMPLE = ROOT / "examples" / "backend_plugin"


@pytest.fixture(scope="module")
def plugin_dir(prefix: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    build = tmp_path_factory.mktemp("shelf")
    run("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    return build


@pytest.mark.parametrize("buffers", ["folder:{}", "self:OBJ"])
def test_passes_the_conformance_suite(
    buffers: str, conformance: pathlib.Path, plugin_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """By files of the folder, and by nothing but the plugin itself."""
    # The plugin makes a buffer shorter by removing it; whoever has the file open still reads it.
    held = ["--deviation=ShortRead=a removed file stays with who has it open"]
    shown = run(
        conformance,
        "SHELF",
        f"--param=folder={tmp_path}",
        f"--remote={buffers.format(tmp_path)}",
        "--largest=8388608",
        *(held if buffers.startswith("self") else []),
        env={"NIXL_PLUGIN_DIR": str(plugin_dir)},
    )
    assert "[  PASSED  ]" in shown
    assert "FAILED" not in shown
    assert not list(tmp_path.iterdir())


def test_its_alias_and_its_errors(conformance: pathlib.Path, plugin_dir: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match='SHELF: folder "/nonexistent": No such file'):
        run(
            conformance,
            "bookshelf",
            "--param=folder=/nonexistent",
            "--remote=self:OBJ",
            "--gtest_filter=*.RePost",
            env={"NIXL_PLUGIN_DIR": str(plugin_dir)},
        )


def test_a_missing_plugin_is_named(conformance: pathlib.Path, plugin_dir: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match="did you mean SHELF?"):
        run(conformance, "SHELFF", env={"NIXL_PLUGIN_DIR": str(plugin_dir)})
