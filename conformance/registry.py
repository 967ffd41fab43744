"""A registry of images that are made here: what test suites pull, without a network.

Only what a client needs to pull (the distribution specification, "Pull"): manifests by tag or digest, and blobs.  Whose
registry a client believes this to be is not looked at: `quay.io/libpod/testimage:1` is asked for as libpod/testimage.

    python registry.py FOLDER PORT      serve what `Images(FOLDER)` has made, on the loopback
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ASKED = re.compile(r"/v2/(?P<name>.+)/(?P<what>manifests|blobs)/(?P<reference>[^/?]+)(\?.*)?")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Images:
    """Images in a folder: blobs by digest, and which manifest a name has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.names: dict[str, str] = {}

    def blob(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add(self, names: tuple[str, ...], layers: list[bytes], machine: str, **config: Any) -> None:
        """An image of these tar archives under "path:tag" names; `config` as in the image specification."""
        blobs = [{"mediaType": LAYER, **self.blob(layer)} for layer in layers]
        created = "2022-06-15T00:00:00Z"
        document = {
            "created": created,
            "architecture": ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [blob["digest"] for blob in blobs]},
            "history": [{"created": created, "created_by": "conformance/registry.py"} for _ in blobs],
        }
        config_blob = {"mediaType": CONFIG, **self.blob(json.dumps(document).encode())}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config_blob, "layers": blobs}
        digest = self.blob(json.dumps(manifest).encode())["digest"]
        self.names.update(dict.fromkeys(names, digest))
        (self.folder / "names.json").write_text(json.dumps(self.names), encoding="utf-8")


def serve(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server that is bound; `serve_forever` is the caller's."""
    names: dict[str, str] = json.loads((folder / "names.json").read_text(encoding="utf-8"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            if self.path.rstrip("/") == "/v2":
                self.say(200, b"{}", "application/json")
                return
            asked = ASKED.fullmatch(self.path)
            digest = asked["reference"] if asked else ""
            if asked and asked["what"] == "manifests" and ":" not in digest:
                digest = names.get(f"{asked['name']}:{digest}", "")
            try:
                data = (folder / "blobs" / re.fullmatch(r"sha256:([0-9a-f]{64})", digest)[1]).read_bytes()  # type: ignore[index]
            except (OSError, TypeError):
                self.say(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}', "application/json")
                return
            kind = MANIFEST if asked and asked["what"] == "manifests" else "application/octet-stream"
            self.say(200, data, kind, digest)

        do_GET = do_HEAD = answer

        def say(self, status: int, data: bytes, kind: str, digest: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
