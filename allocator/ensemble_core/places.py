"""Places that commands read from and write to; what is wrong is told with the option that gives the place."""

from __future__ import annotations

from pathlib import Path

from ensemble_core.errors import UserError


def check_file(option: str, file: Path) -> Path:
    """A file that may be written, and need not be there; UserError if something else is in its place or above it."""
    _refuse(option, file, file if file.is_dir() else _above(file))
    return file


def check_folder(option: str, folder: Path) -> Path:
    """A folder that may be written, and need not be there; UserError if something else is in its place or above it."""
    _refuse(option, folder, folder if folder.exists() and not folder.is_dir() else _above(folder))
    return folder


def make_folder(option: str, folder: Path) -> Path:
    """Make a folder and those above it; UserError as of `check_folder`, or where no folder can be."""
    check_folder(option, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # below /proc, for example
        raise UserError(option, f"{folder} cannot be written: there can be no such folder") from None
    return folder


def existing_folder(option: str, folder: Path) -> Path:
    """A folder with its whole path; UserError if there is none."""
    if not folder.is_dir():
        raise UserError(option, f"there is no folder {folder.absolute()}")
    return folder.absolute()


def _above(path: Path) -> Path | None:
    """What is above a path and no folder."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    return None if above.is_dir() else above


def _refuse(option: str, path: Path, obstacle: Path | None) -> None:
    if obstacle is not None:
        raise UserError(option, f"{path} cannot be written: {obstacle} is in its place")
