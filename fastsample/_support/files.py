"""Stored files: written whole or not at all, and read only if they are what was written.

Every file holds a document, one JSON object: `format` (a name), `version`, what the format itself
keeps, and `sha256`, the checksum of all the rest. Plans are such a document as text. Profiles and
checkpoints are safetensors files with the document in the metadata; their checksum covers the
tensors too. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

_KEY = "fastsample"  # of the document in safetensors' metadata
_LARGEST = 100_000_000  # bytes of a document: safetensors' own bound on its header
# What code raises that reads values it did not expect.
_FAILURES = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write beside the place, then rename: an interruption leaves what was there before."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; these are to be read by whoever may read the folder.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


@dataclass(frozen=True)
class Format:
    """One kind of stored file, as text.

    Args:
        name: in the file, "fastsample.plan".
        version: that is written; those from 1 on are read.
        function: that reads it, for messages.
        rule: what that wants: "path must be a fastsample profile".
        bare: the last version that had no checksum.
    """

    name: str
    version: int
    function: str
    rule: str
    bare: int = 0

    def refusal(self, got: object, reason: object) -> ValueError:
        """The error for something that is no such file."""
        return ValueError(f"{self.function}: {self.rule}, got {got} ({reason})")

    @contextmanager
    def reading(self, got: object) -> Iterator[None]:
        """Whatever is wrong with the content becomes a refusal of what was given."""
        try:
            yield
        except _FAILURES as error:
            reason = f"{error} missing" if isinstance(error, KeyError) else error
            raise self.refusal(got, reason) from error

    def to_text(self, fields: Mapping[str, Any]) -> str:
        """Strict JSON: the fields in their order, floats bit for bit."""
        return json.dumps(self._sealed(fields, {}), allow_nan=False)

    def from_text(self, text: str | bytes, got: object) -> dict[str, Any]:
        """The fields that `to_text` was given, as JSON has them.

        Args:
            text: whatever is there.
            got: how messages call it.

        Raises:
            ValueError: it is something else, damaged or cut off, or made by a newer version.
        """
        with self.reading(got):
            document = self._accepted(_parsed(text))
            return self._unsealed(document, document, {})

    def save_text(self, path: str | os.PathLike[str], fields: Mapping[str, Any]) -> Path:
        """Write the text to a file, whose folder is made if need be."""
        return _written(path, self.to_text(fields).encode() + b"\n")

    def load_text(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """`from_text` of a file; FileNotFoundError if there is none."""
        place = self._place(path)
        if place.stat().st_size > _LARGEST:
            raise self.refusal(place, f"more than {_LARGEST} bytes")
        return self.from_text(place.read_bytes(), place)

    def _place(self, path: Any) -> Path:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{self.function}: path must be a path, got {type(path).__name__}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{self.function}: path must name a file, got {path}")
        return Path(path)

    def _sealed(self, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The document of these fields."""
        document = {"format": self.name, "version": self.version, **fields}
        # Through JSON and back: the checksum is of what a reader will find.
        document = json.loads(json.dumps(document))
        return {**document, "sha256": _digest(document, tensors)}

    def _accepted(self, document: Any) -> dict[str, Any]:
        """The document, if name and version are those of this format."""
        if not isinstance(document, dict) or document.get("format") != self.name:
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
        """The document without its checksum, which must be that of what it covers."""
        said = document.pop("sha256", None)
        # One that is there is checked in any version: damage may make a new file look old.
        if said is None and document["version"] <= self.bare:
            return document
        if said != _digest(covered, tensors):
            raise ValueError("damaged: its checksum is not that of its content")
        return document


@dataclass(frozen=True)
class TensorFormat(Format):
    """One kind of stored file, with tensors.

    Args:
        framework: of the tensors: arrays of numpy, or of PyTorch on the CPU.
        old_key: of version 1 in the metadata, which had no common one.
        old: from what stood there to (document, what its checksum covers besides the tensors).
    """

    framework: Literal["numpy", "pt"] = "numpy"
    old_key: str | None = None
    old: Callable[[Any], tuple[dict[str, Any], Any]] | None = None

    def save(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, Any],
        tensors: Mapping[str, Any],
    ) -> Path:
        """Write a file, whose folder is made if need be; the same content makes the same bytes.

        Holds the tensors twice: as they are, and as the bytes of the file.

        Args:
            path: a file to make or to replace.
            fields: whatever JSON can hold.
            tensors: contiguous, no two in one memory.
        """
        if self.framework == "pt":
            from safetensors.torch import save
        else:
            from safetensors.numpy import save
        document = _canonical(self._sealed(fields, tensors))
        # One entry: safetensors writes several in an order that changes from run to run.
        return _written(path, save(dict(tensors), {_KEY: document}))

    def load(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(fields, tensors) of a file.

        Holds the tensors once. The file is mapped while they are copied out of it, so that its
        pages are the operating system's to keep or to drop. safetensors allocates nothing before
        it has compared the header with the length of the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is something else, damaged or cut off, or made by a newer version.
        """
        place = self._place(path)
        with self.reading(place):
            try:
                with safe_open(place, framework=self.framework) as file:
                    metadata = file.metadata() or {}
                    if self.old is not None and _KEY not in metadata and self.old_key in metadata:
                        document, covered = self.old(_parsed(metadata[self.old_key]))
                    else:
                        document = covered = _parsed(metadata.get(_KEY, "null"))
                    document = self._accepted(document)
                    tensors = {k: _copied(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"cut off, or no safetensors file: {error}") from None
            return self._unsealed(document, covered, tensors), tensors


def _written(path: str | os.PathLike[str], data: bytes) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, data)


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cut off, or no JSON: {error}") from None


def _canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(content: Any, tensors: Mapping[str, Any]) -> str:
    """SHA-256 of JSON and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(_canonical(content).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_memory(value))
    return digest.hexdigest()


def _memory(tensor: Any) -> Any:
    """The bytes of a contiguous tensor, where they are."""
    flat = tensor.reshape(-1)
    if not hasattr(flat, "numpy"):
        return flat.view("u1")
    import torch

    return flat.view(torch.uint8).numpy()  # numpy has no bfloat16


def _copied(tensor: Any) -> Any:
    """PyTorch's are views of the file, and whoever writes into that would change them."""
    if not hasattr(tensor, "numpy"):
        return tensor
    import torch

    # As bytes: a bool's would be made 0 or 1, and damage to them not be seen.
    flat = tensor.reshape(-1).view(torch.uint8).clone()
    return flat.view(tensor.dtype).reshape(tensor.shape)
