"""Find the files of a published data set: in a directory that the user names, or from the net.

Whatever comes from the net is checked by the SHA-256 of its *uncompressed* content, so a mirror may compress it as it likes.
Nothing is unpickled, and no path inside an archive is ever used as a path on disk.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from clnp.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

# Seconds without a byte before the next address is tried.
TIMEOUT = 30

# What unpacking and reading raise when content is cut off or not what its name says. Network errors of requests are OSErrors.
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError, ValueError)


@dataclass(frozen=True)
class Published:
    """Describe a data set that others publish: its files, what is in them, where they lie.

    Args:
        title: its name in messages, for example "Fashion-MNIST".
        folder: the directory of the official layout, below the data directory.
        files: file name -> SHA-256 of the uncompressed content.
        addresses: where to fetch it, tried in order; each ends in "/".
        archive: the .tar.gz below each address that holds all the files; without it each file lies there as NAME.gz.
        also: further directories in which other libraries keep the same files.
    """

    title: str
    folder: str
    files: Mapping[str, str]
    addresses: tuple[str, ...]
    archive: str | None = None
    also: tuple[str, ...] = ()


def locate(published: Published, data: Path | None) -> dict[str, Path]:
    """Return the path of every file of a data set.

    Args:
        published: the data set.
        data: a directory with the files in their official layout, plain or gzipped; it is only read, nothing is downloaded.
            None: the cache of downloads, filled where something is missing or damaged.
    Returns: file name -> path.

    Raises:
        DataError: a file is missing, or no address gave it with the right content.
    """
    if data is None:
        folder = fetch(published)
        return {name: folder / name for name in published.files}
    folders = [data / name for name in (published.folder, *published.also)]
    found: dict[str, Path] = {}
    for name in published.files:
        path = next((path for folder in folders for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        if path is None:
            places = " or ".join(str(folder) for folder in folders)
            msg = f"cannot load {published.title}: expected the file '{name}' or '{name}.gz' in {places}, found neither"
            msg += "" if data.is_dir() else f" (there is no directory {data})"
            raise DataError(f"{msg}. Put the official files there, or leave out the data directory (--data) to download them.")
        found[name] = path
    return found


MAX_BYTES = 2**30
"""Of one file of the official data sets, unpacked: several times what the largest has."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzipped (told by its first bytes, not its name).

    Raises:
        DataError: the file cannot be read, is gzipped and cut off, or holds more than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as plain:
            is_packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if is_packed else plain as file:
                content = file.read(MAX_BYTES + 1)  # a few bytes may unpack into gigabytes
    except _BROKEN as error:
        msg = f"cannot read {path}: {error}. Fetch the file again, or make it readable."
        raise DataError(msg) from error
    if len(content) > MAX_BYTES:
        msg = f"cannot read {path}: expected at most {MAX_BYTES:,} bytes, found more. The official files are smaller; fetch it again."
        raise DataError(msg)
    return content


def cache_directory() -> Path:
    """Return the directory that downloads are kept in: the operating system's cache (XDG_CACHE_HOME on Linux)."""
    import pooch

    return Path(pooch.os_cache("clnp"))


def fetch(published: Published, cache: Path | None = None) -> Path:
    """Download what is missing or damaged in the cache, and return the folder that holds the files.

    Each address is tried once, in order; what one delivered in good order is kept when the next is asked for the rest. Processes
    that start together wait for one another.

    Args:
        published: the data set.
        cache: the directory that `published.folder` is made in. None: `cache_directory()`.

    Raises:
        DataError: no address gave every file with the right content, or the cache cannot be written.
    """
    import pooch
    from filelock import FileLock

    folder = (cache or cache_directory()) / published.folder
    if all((folder / name).is_file() and pooch.file_hash(folder / name) == sha256 for name, sha256 in published.files.items()):
        return folder  # without the lock: the cache may be read-only by now
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")), TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            for address in published.addresses:
                try:
                    _fetch_from(address, published, folder, Path(scratch))
                except _BROKEN as error:
                    failures.append(f"{address}: {_reason(error)}")
                else:
                    return folder
    except OSError as error:
        msg = f"cannot download {published.title}: cannot write in {folder} ({error}). Make room or give leave to write there, "
        msg += "or put the files in a directory of your own and name it (--data DIR)."
        raise DataError(msg) from error
    msg = f"cannot download {published.title} into {folder}: none of {len(failures)} addresses gave every file with the right content "
    msg += f"({'; '.join(failures)}). "
    msg += f"Check the connection, or put {', '.join(published.files)} in DIR/{published.folder} and name the directory (--data DIR)."
    raise DataError(msg)


def _reason(error: BaseException) -> str:
    """Return what went wrong in one line: of a connection that failed, the cause, without the layers that it came through."""
    cause = getattr(error.args[0] if error.args else None, "reason", None) or error
    line = first_line(cause)
    return line.partition("): ")[2] or line if line.startswith(("HTTPConnection", "HTTPSConnection", "<urllib3")) else line


def _fetch_from(address: str, published: Published, folder: Path, scratch: Path) -> None:
    """Fetch the files that are not in the folder in good order from one address; pooch checks the hashes of the content."""
    import pooch

    urls = {name: address + (f"{published.archive}#{name}" if published.archive else f"{name}.gz") for name in published.files}
    fetcher = pooch.create(path=folder, base_url=address, registry=dict(published.files), urls=urls)
    unpack = cast("Any", _Unpack(scratch))  # Any: the protocol in pooch names the arguments otherwise than pooch itself does
    for name in published.files:
        fetcher.fetch(name, downloader=unpack)


class _Unpack:
    """Be a pooch downloader that delivers what is inside a .gz, or the member of a .tar.gz that the URL's fragment names.

    Pooch then hashes the content and not its wrapping. An archive is fetched once for all its members.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.archives: dict[str, Path] = {}

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        """Download the URL and write its unpacked content to a path."""
        address, _, member = url.partition("#")
        packed = self.archives.get(address) or self._download(address)
        with Path(output_file).open("wb") as target:
            if not member:
                with gzip.open(packed) as content:
                    shutil.copyfileobj(content, target)
                packed.unlink()
                return
            self.archives[address] = packed
            _copy_member(packed, member, target)

    def _download(self, address: str) -> Path:
        import pooch

        packed = self.scratch / address.rpartition("/")[2]
        pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 16)(address, str(packed), None)
        return packed


def _copy_member(archive: Path, member: str, target: BinaryIO) -> None:
    """Copy one regular file of an archive, named without its folders.

    The content is streamed: names, links and modes of the archive never reach the file system, which is stricter than
    `extractall(filter="data")` and, unlike it, in every Python 3.11.
    """
    with tarfile.open(archive) as opened:
        for entry in opened:
            if entry.isreg() and entry.name.rpartition("/")[2] == member:
                shutil.copyfileobj(cast("BinaryIO", opened.extractfile(entry)), target)
                return
    msg = f"{archive.name} holds no file '{member}'"
    raise ValueError(msg)
