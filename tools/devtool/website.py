"""./dev docs: builds the pages of the tree as a site, and checks every link inside it."""

from __future__ import annotations

import pathlib
import re
import shutil

from common import BUILD, ROOT, VENV_PYTHON, git_files, run, say, tail, venv_env

SOURCE = BUILD / "site-source"
SITE = BUILD / "site"
# Pages of the tests are for those who read the tests.
LEFT_OUT = ("tests/", ".github/")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def pages() -> list[pathlib.PurePosixPath]:
    names = (path.relative_to(ROOT).as_posix() for path in git_files("*.md"))
    return [pathlib.PurePosixPath(name) for name in names if not name.startswith(LEFT_OUT)]


def stage() -> None:
    """Copies the pages to where mkdocs reads them, with the files that they link to."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in pages():
        text = (ROOT / page).read_text()
        put(page, text)
        for link in LINK.findall(text):
            linked = (ROOT / page.parent / link).resolve()
            if "://" in link or not linked.is_relative_to(ROOT) or linked.suffix == ".md":
                continue
            if linked.is_file():
                put(linked.relative_to(ROOT), linked.read_text(errors="replace"))


def put(name: pathlib.PurePath, text: str) -> None:
    target = SOURCE / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def build() -> str:
    """Builds the site; the complaints, or nothing."""
    stage()
    command = [VENV_PYTHON, "-m", "mkdocs", "build", "--strict", "--clean"]
    env = venv_env(NO_MKDOCS_2_WARNING="1", DISABLE_MKDOCS_2_WARNING="true")
    for old in (BUILD / "logs").glob("docs-site.log"):
        old.unlink()
    return "" if run(command, "docs-site", env=env) == 0 else tail("docs-site")


def command() -> int:
    if complaints := build():
        say(complaints)
        return 1
    say(f"built {SITE.relative_to(ROOT)}/index.html: {len(pages())} pages, no broken link")
    return 0
