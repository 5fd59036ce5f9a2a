"""Every code block of README.md, CONTRIBUTING.md and docs/ does what the page says."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
from blocks import ROOT, Block, find_blocks, run_block, unmet_need

DOCUMENTS = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if path.exists()
]
BLOCKS = [block for document in DOCUMENTS for block in find_blocks(document)]


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The build tree, installed once."""
    target = tmp_path_factory.mktemp("prefix")
    build = os.environ["NIXL_BUILD_DIR"]
    subprocess.run(
        ["cmake", "--install", build, "--prefix", str(target)], check=True, capture_output=True
    )
    return str(target)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[pathlib.Path, pathlib.Path]:
    """One scratch folder for each document."""
    return {document: tmp_path_factory.mktemp(document.stem) for document in DOCUMENTS}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block(
    block: Block,
    folders: dict[pathlib.Path, pathlib.Path],
    request: pytest.FixtureRequest,
) -> None:
    if "not-run" in block.directives:
        pytest.skip(f"not run: {block.directives['not-run'] or 'no reason given'}")
    if reason := unmet_need(block):
        pytest.skip(reason)
    earlier = [b for b in BLOCKS if b.document == block.document and b.line < block.line]
    prefix = request.getfixturevalue("prefix") if block.language == "bash" else ""
    run_block(block, earlier, folders[block.document], prefix)


def test_every_skipped_block_says_why() -> None:
    silent = [b.name for b in BLOCKS if b.directives.get("not-run") == ""]
    assert not silent, f"not-run without a reason: {silent}"
