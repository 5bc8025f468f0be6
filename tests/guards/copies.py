"""Trees to break: a copy of the checkout with a Python of its own, so that whatever a test starts is the copy's too."""

import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guards.table import ROOT, SOURCE, Guard, Unusable

_LEFT_OUT = shutil.ignore_patterns(".git", ".fuzz", ".venv*", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy; one guard at a time is disabled in it."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / ".venv" / "bin" / "python"

    @classmethod
    def make(cls, root: Path) -> "Copy":
        """Raises Unusable where its Python would import another tree."""
        shutil.copytree(ROOT, root, ignore=_LEFT_OUT, symlinks=True)
        venv.create(root / ".venv", with_pip=False, symlinks=True)
        copy = cls(root)
        copy._lend_packages()
        copy._require_own_package()
        return copy

    def _lend_packages(self) -> None:
        """The installed packages behind our own: a path file inside a lent directory is not read."""
        (site,) = (self.root / ".venv" / "lib").glob("python*/site-packages")
        (site / "copy.pth").write_text(f"{self.root / 'agent'}\n{sysconfig.get_path('purelib')}\n")

    def _require_own_package(self) -> None:
        for flags in ([], ["-I"]):
            asked = [self.python, *flags, "-c", "import antechamber; print(antechamber.__file__)"]
            seen = subprocess.run(asked, capture_output=True, text=True, check=True, env={}).stdout.strip()
            if not Path(seen).is_relative_to(self.root / SOURCE):
                raise Unusable(f"the copy's Python imports {seen}")

    @contextmanager
    def without(self, guard: Guard) -> Iterator[None]:
        """Disable it, and put everything back. Raises Unusable."""
        before = {edit.file: (self.root / SOURCE / edit.file).read_text() for edit in guard.edits}
        try:
            for edit in guard.edits:
                text = (self.root / SOURCE / edit.file).read_text()
                edit.require_once(text)
                self._write(edit.file, text.replace(edit.find, edit.replace))
            yield
        finally:
            for file, text in before.items():
                self._write(file, text)

    def _write(self, file: str, text: str) -> None:
        """And forget the bytecode: it is told apart by second and size, which two edits may share."""
        path = self.root / SOURCE / file
        path.write_text(text)
        for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            old.unlink()


@contextmanager
def copies(count: int, parent: Path) -> Iterator[list[Copy]]:
    """`count` copies under `parent`, each with the real evidence that lies beside the checkout, if any does."""
    made = []
    for number in range(count):
        root = parent / str(number) / "main"
        made.append(Copy.make(root))
        if (shared := ROOT.parent / "shared").is_dir():
            (root.parent / "shared").symlink_to(shared)
    yield made
