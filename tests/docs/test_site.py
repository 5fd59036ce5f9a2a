"""The site of the documentation builds, and a broken link is found (./dev docs)."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys

import pytest
from blocks import ROOT

if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
    pytest.skip("no mkdocs-material here; ./dev docs installs it", allow_module_level=True)


@pytest.fixture
def website(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools" / "devtool"), *sys.path])
    return importlib.import_module("website")


def test_the_site_builds_and_no_link_is_broken(website) -> None:
    assert website.build() == ""
    assert (website.SITE / "index.html").exists()
    assert (website.SITE / "docs" / "guarantees.html").exists()


@pytest.mark.parametrize("link", ["docs/absent.md", "docs/guarantees.md#absent"])
def test_a_broken_link_is_found(link: str, website, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = website.stage

    def spoiled() -> None:
        stage()
        page = website.SOURCE / "CONTRIBUTING.md"
        page.write_text(page.read_text() + f"\n[there]({link})\n")

    monkeypatch.setattr(website, "stage", spoiled)
    assert pathlib.PurePosixPath(link).name.split("#")[-1].removesuffix(".md") in website.build()
