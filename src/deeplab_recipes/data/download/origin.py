"""Where `deeplab download` takes each file from: the published address, another one, or this machine."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deeplab_recipes.data.download.sets import Archive, DataSet
from deeplab_recipes.fetching.transfer import came_from

DOWNLOADS = "downloads"  # under the root: archives, and what was fetched of them so far


def find_sources(chosen: DataSet, root: Path, missing: list[Archive], address: str | None) -> dict[str, str | Path]:
    """Return where to take each archive from: a file on this machine, or an address.

    Raises:
        FileNotFoundError, ValueError: where there is none, or what was given cannot serve.
    """
    given = _given(chosen, missing, address)
    found: dict[str, str | Path] = {}
    for archive in missing:
        here = root / DOWNLOADS / archive.filename
        wanted = given.get(archive.filename)
        source = wanted or archive.address
        if here.is_file() and (wanted is None or (isinstance(wanted, str) and came_from(here) in (None, wanted))):
            source = here  # put there by hand, or fetched before a kill
        if isinstance(source, Path) and not source.is_file():
            raise FileNotFoundError(f"address={address}: there is no file {source}")
        if source is not None:
            found[archive.filename] = source
    absent = [a for a in missing if a.filename not in found]
    if absent:
        names = " and ".join(f"{a.filename} ({a.about})" for a in absent)
        raise FileNotFoundError(
            f"{chosen.name} needs an account, so its files are fetched by hand: log in at {chosen.login}, fetch "
            f"{names}, put them into {root / DOWNLOADS}/ and run the same command again; address=FOLDER/ takes them "
            "from elsewhere"
        )
    return found


def _given(chosen: DataSet, missing: list[Archive], address: str | None) -> dict[str, str | Path]:
    """Return what `address` means for each archive that it is about."""
    if address is None:
        return {}
    base = _local(address)
    if address.endswith("/") or (isinstance(base, Path) and base.is_dir()):
        return {a.filename: base / a.filename if isinstance(base, Path) else base + a.filename for a in missing}
    name = base.name if isinstance(base, Path) else unquote(urlsplit(base).path.rpartition("/")[2])
    named = [a.filename for a in chosen.archives if a.filename == name]
    if not named and len(missing) > 1:
        files = ", ".join(a.filename for a in missing)
        raise ValueError(
            f"{chosen.name} has several files ({files}): address={address} must be a folder that holds them"
        )
    return {(named or [missing[0].filename])[0]: base}


def _local(address: str) -> str | Path:
    """Tell an address on the network from a file or folder of this machine."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    if scheme is None:
        return Path(address).expanduser()
    if scheme[1].lower() == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme[1].lower() not in ("http", "https"):
        raise ValueError(f"address={address}: valid are http, https and file addresses, a file, or a folder")
    return address
