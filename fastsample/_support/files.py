"""Reading and writing of the package's files: a write is atomic, and damage is detected.

Every file holds a document, which is one JSON object: `format` (a name), `version`, the format's
own fields, and `sha256`, the checksum of all the rest. Plans are such a document as text. Profiles
and checkpoints are safetensors files with the document in the metadata; their checksum covers the
tensors too. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError, safe_open

_KEY = "fastsample"  # The document is stored under this key of the safetensors metadata.
_LARGEST = 100_000_000  # This is the limit of safetensors on its header, in bytes.
# Code that parses a damaged file may raise any of these.
_FAILURES = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file so that an interrupted write leaves the old content; return its real path.

    The data go to a temporary file in the same folder, which is then renamed. The file that a
    symbolic link points to is replaced, not the link. A new file has the permissions that the
    process gives to new files, a replaced one keeps its own.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)  # mkstemp makes files private
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def _umask() -> int:
    """Return the process's file mode mask (umask), which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class Format:
    """Reads and writes one kind of file that is JSON text, such as plans.

    Args:
        name: the document's `format`, for example "fastsample.plan".
        version: the version that is written; versions from 1 up to it are read.
        function: name of the function that reads the file, for messages.
        rule: what that function demands, for messages: "path must be a fastsample profile".
        last_without_checksum: the last version whose files had no checksum; 0 if all have one.
    """

    name: str
    version: int
    function: str
    rule: str
    last_without_checksum: int = 0

    def refusal(self, got: object, reason: object) -> ValueError:
        """Return the ValueError to raise for content that is no file of this format."""
        return ValueError(f"{self.function}: {self.rule}, got {got} ({reason})")

    @contextmanager
    def reading(self, got: object) -> Generator[None]:
        """Turn any error that is raised inside the ``with`` block into `refusal(got, ...)`."""
        try:
            yield
        except _FAILURES as error:
            reason = f"{error} missing" if isinstance(error, KeyError) else error
            raise self.refusal(got, reason) from error

    def to_text(self, fields: Mapping[str, Any]) -> str:
        """Return the fields as strict JSON with a checksum; floats are kept bit for bit."""
        return json.dumps(self._sealed(fields, {}), allow_nan=False)

    def from_text(self, text: str | bytes, got: object) -> dict[str, Any]:
        """Return the fields that `to_text` stored, as lists, dicts, strings and numbers.

        Args:
            text: text from any source.
            got: the name of the text in messages.

        Raises:
            ValueError: the text is something else, damaged, cut off or from a newer version.
        """
        with self.reading(got):
            document = self._accepted(_parsed(text))
            return self._unsealed(document, document, {})

    def save_text(self, path: str | os.PathLike[str], fields: Mapping[str, Any]) -> Path:
        """Write `to_text` of the fields to a file, making its folder if needed; return its path."""
        return _written(path, self.to_text(fields).encode() + b"\n")

    def load_text(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the fields of a file, as `from_text` does; FileNotFoundError if there is none."""
        file = self._existing(path)
        if file.stat().st_size > _LARGEST:
            raise self.refusal(file, f"more than {_LARGEST} bytes")
        return self.from_text(file.read_bytes(), file)

    def _existing(self, path: Any) -> Path:
        """Return the path; raise FileNotFoundError if no file exists there."""
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{self.function}: path must be a path, got {type(path).__name__}")
        file = Path(cast("str | os.PathLike[str]", path))
        if not file.is_file():
            raise FileNotFoundError(f"{self.function}: path must name a file, got {path}")
        return file

    def _sealed(self, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with `format`, `version` and the checksum `sha256` added."""
        document = {"format": self.name, "version": self.version, **fields}
        # Encode and decode the document, so that the checksum covers what a reader will parse.
        document = json.loads(json.dumps(document))
        return {**document, "sha256": _digest(document, tensors)}

    def _accepted(self, document: Any) -> dict[str, Any]:
        """Return the document; raise unless this class can read its `format` and `version`."""
        if not isinstance(document, dict):
            raise ValueError(f'no "format": "{self.name}" in it')
        document = cast("dict[str, Any]", document)
        if document.get("format") != self.name:
            raise ValueError(f'no "format": "{self.name}" in it')
        version = document.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"version {version!r}")
        if version > self.version:
            raise ValueError(f"version {version}, made by a newer fastsample; upgrade to read it")
        return document

    def _unsealed(
        self, document: dict[str, Any], covered: Any, tensors: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Verify the checksum of `covered` and the tensors; return the document without it."""
        stored = document.pop("sha256", None)
        # Any checksum is verified, even in old versions: damage can make a new file look old.
        if stored is None and document["version"] <= self.last_without_checksum:
            return document
        if stored != _digest(covered, tensors):
            raise ValueError("damaged: its checksum is not that of its content")
        return document


@dataclass(frozen=True)
class TensorFormat(Format):
    """Reads and writes one kind of safetensors file, which holds tensors and JSON fields.

    Args:
        framework: the library of the tensors: "numpy" arrays, or PyTorch ("pt") tensors on the
            CPU.
        version_1_key: the metadata entry that version 1 used instead of the common one.
        read_version_1: turns the content of that entry into (document, the part of it that the
            checksum covers besides the tensors).
    """

    framework: Literal["numpy", "pt"] = "numpy"
    version_1_key: str | None = None
    read_version_1: Callable[[Any], tuple[dict[str, Any], Any]] | None = None

    def save(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, Any],
        tensors: Mapping[str, Any],
    ) -> Path:
        """Write a file, making its folder if need be; the same content gives the same bytes.

        The tensors are in memory twice meanwhile: as they are, and as the bytes of the file.

        Args:
            path: a file to make or to replace.
            fields: values that JSON can hold.
            tensors: contiguous tensors, no two of which share memory.
        """
        if self.framework == "pt":
            from safetensors.torch import save
        else:
            from safetensors.numpy import save
        document = _canonical(self._sealed(fields, tensors))
        # The document is one metadata entry: the order in which safetensors writes several varies.
        return _written(path, save(dict(tensors), {_KEY: document}))

    def load(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the (fields, tensors) that `save` stored in a file.

        The tensors are in memory once: they are copied out of a mapping of the file, whose pages
        the operating system may drop. safetensors allocates nothing before it has compared the
        header with the length of the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is something else, damaged, cut off or from a newer version.
        """
        file = self._existing(path)
        with self.reading(file):
            try:
                # The `Any` is needed because safetensors has no type annotations.
                with cast("Any", safe_open)(file, framework=self.framework) as content:
                    metadata: dict[str, str] = content.metadata() or {}
                    if (
                        self.read_version_1 is not None
                        and self.version_1_key is not None
                        and _KEY not in metadata
                        and self.version_1_key in metadata
                    ):
                        header = _parsed(metadata[self.version_1_key])
                        document, covered = self.read_version_1(header)
                    else:
                        document = covered = _parsed(metadata.get(_KEY, "null"))
                    document = self._accepted(document)
                    names: list[str] = content.keys()
                    tensors = {name: _copied(content.get_tensor(name)) for name in names}
            except SafetensorError as error:
                raise ValueError(f"cut off, or no safetensors file: {error}") from None
            return self._unsealed(document, covered, tensors), tensors


def _written(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file atomically, make its folder if need be, and return its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, data)


def _parsed(text: str | bytes) -> Any:
    """Return the parsed JSON; raise ValueError for text that is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cut off, or no JSON: {error}") from None


def _canonical(value: Any) -> str:
    """Return the value as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(content: Any, tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content as JSON and of all tensors (name, dtype, shape, bytes)."""
    digest = hashlib.sha256(_canonical(content).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_byte_view(value))
    return digest.hexdigest()


def _byte_view(tensor: Any) -> Any:
    """Return a uint8 NumPy view of a contiguous tensor's memory."""
    flat = tensor.reshape(-1)
    if not hasattr(flat, "numpy"):
        return flat.view("u1")
    import torch

    return flat.view(torch.uint8).numpy()  # viewed as uint8 first, because NumPy has no bfloat16


def _copied(tensor: Any) -> Any:
    """Return a copy of a PyTorch tensor, which safetensors returns as a view of the file.

    A program that writes into the file would otherwise change the tensor.
    """
    if not hasattr(tensor, "numpy"):
        return tensor
    import torch

    # Copy as bytes: cloning a bool tensor would turn its bytes into 0 or 1, which hides damage.
    flat = tensor.reshape(-1).view(torch.uint8).clone()
    return flat.view(tensor.dtype).reshape(tensor.shape)
