"""What clients send, brought to disk under names of our own and bounded in size."""

from __future__ import annotations

import lzma
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from diffugts.errors import InputError
from diffugts.serve.limits import Limits

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".zip")
"""What may be uploaded; .nhdr and .mhd keep their voxels in another file."""

BLOCK = 1 << 20
HEADER = 1 << 16
"""The longest text header of an .nrrd or .mha that is looked at."""

MAX_DIRECTORY = 16 * 2**20
"""Bytes of a zip's directory: it is read whole into memory."""


def store(stream: BinaryIO, name: str | None, folder: Path, stem: str, limits: Limits, zipped: bool = True) -> Path:
    """Write an upload as `folder/stem` with the extension of its kind; a zip is unpacked into that folder.

    Args:
        stream: its bytes.
        name: as the client calls it; only its extension counts.
        zipped: whether a zip will do.

    Returns:
        The file, or the folder with the unpacked files.

    Raises:
        InputError: another kind of file, an empty one, a bad zip, a header that points at other files.
    """
    formats = FORMATS if zipped else FORMATS[:-1]
    suffix = next((suffix for suffix in formats if (name or "").lower().endswith(suffix)), None)
    if suffix is None:
        known = ", ".join(formats)
        raise InputError(f"the {stem} is of no known type; its name must end in {known}" + " (of DICOM files)" * zipped)
    path = folder / f"{stem}{suffix}"
    with path.open("xb") as file:
        shutil.copyfileobj(stream, file, BLOCK)
    if not path.stat().st_size:
        raise InputError(f"the {stem} is empty (0 bytes); send it again")
    if suffix in (".nrrd", ".mha"):
        refuse_detached(path)
    if suffix != ".zip":
        return path
    unpack(path, folder / stem, limits)
    path.unlink()
    return folder / stem


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a zip's files, flat and numbered, into a new folder.

    Neither names nor sizes in the archive are believed: bytes are counted while they are written.

    Raises:
        InputError: no zip, an encrypted or damaged one, one without files, or one beyond the limits.
    """
    _check_directory(archive, limits)
    folder.mkdir()
    room = limits.max_unpacked
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if not entries:
                raise InputError("the zip holds no files; put the DICOM slices into it")
            for number, entry in enumerate(entries):
                if entry.flag_bits & 1:
                    raise InputError("the zip is encrypted; send it without a password")
                with opened.open(entry) as source, (folder / f"{number:06d}").open("xb") as target:
                    while block := source.read(BLOCK):
                        room -= len(block)
                        if room < 0:
                            raise InputError(
                                f"the zip unpacks to more than {limits.max_unpacked / 1e6:,.0f} MB; send one series"
                            )
                        target.write(block)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the zip is damaged or of an unusual kind; make it again") from error


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuse a zip whose directory alone would fill the memory; zipfile reads it before anything can be asked."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise InputError("the zip is damaged or no zip; make it again")
    files = int.from_bytes(tail[at + 10 : at + 12], "little")
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if files > limits.max_files:
        raise InputError(f"the zip holds {files:,} files, more than {limits.max_files:,}; send one series")
    if b"PK\6\7" in tail[:at] or directory > MAX_DIRECTORY:
        raise InputError("the zip is of the 64-bit kind or has an endless directory; make an ordinary one")


def refuse_detached(path: Path) -> None:
    """Refuse an .nrrd or .mha whose voxels lie in another file: it could name any file of this machine.

    Raises:
        InputError: such a header, or one that is none.
    """
    with path.open("rb") as file:
        head = file.read(HEADER)
    if path.suffix == ".nrrd":
        end = re.search(rb"\r?\n\r?\n", head)
        alone = head.startswith(b"NRRD") and end and not re.search(rb"(?i)data\s*file", head[: end.start()])
    else:  # the first mention must be the line that says LOCAL, whatever a comment before it holds
        mention = re.search(rb"(?i)ElementDataFile", head)
        local = re.search(rb"(?m)^ElementDataFile *= *LOCAL\s", head)
        alone = mention and local and mention.start() == local.start()
    if not alone:
        raise InputError(f"{path.name} does not hold its own voxels, or is no {path.suffix} file; save it as one file")
