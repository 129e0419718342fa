"""verify_openapi.py [EXAMPLES]: hold a running server against its OpenAPI document, by Schemathesis.

Serves a copy of models/ and sends generated requests, good and bad ones, to every route of the public and of the
management listener: EXAMPLES (25) for each. Wrong are a 5xx that is not a plain "not now" (503, 504), a status or a
content type that the document does not know, and an answer that does not fit its schema. Schemathesis has an
environment of its own, .venv-schemathesis.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.running import MODELS, running_server  # noqa: E402

SCHEMATHESIS = "schemathesis==4.32.5"
VENV = ROOT / ".venv-schemathesis"
TOKEN = "for a server that lives as long as this script"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SETTINGS = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 503, 504]\n'
# Beside what is made up, so that requests get past the path.
KNOWN = {
    "name": ["digits", "efficientnet-lite0", "resnet"],
    "version": ["1.1.0", "stable", "9.9.9"],
    "label": ["stable", "canary"],
}
PUBLIC = ("--exclude-path-regex", "^/metrics$")  # which is no JSON
MANAGEMENT = ("--include-path-regex", "^/(models|update$|v2/repository/)", "--header", f"Authorization: Bearer {TOKEN}")


def main() -> int:
    examples = sys.argv[1] if len(sys.argv) > 1 else "25"
    if not (VENV / "bin" / "st").exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", SCHEMATHESIS], check=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(MODELS, work / "models")
        (work / "schemathesis.toml").write_text(SETTINGS)
        environment = {
            "HEADWAY_MODELS": str(work / "models"),
            "HEADWAY_ADMIN_TOKEN": TOKEN,
            "HEADWAY_MANAGEMENT_BIND": "127.0.0.1:0",
        }
        with running_server(work / "log", workers=1, **environment) as server:
            document = httpx.get(f"{server.url}/openapi.json").json()
            (work / "openapi.json").write_text(json.dumps(with_known_names(document)))
            failed = run(work, server.url, examples, *PUBLIC)
            failed |= run(work, server.management_url, examples, *MANAGEMENT)  # changes the models
        log = (work / "log").read_text()
        if "Traceback" in log:
            sys.stdout.write(log)
        return int(failed or "Traceback" in log)


def with_known_names(document: dict[str, Any]) -> dict[str, Any]:
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and parameter["name"] in KNOWN:
                    parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
    return document


def run(work: Path, url: str, examples: str, *options: str) -> bool:
    """Whether anything was wrong."""
    command = [
        VENV / "bin" / "st", "run", "openapi.json", "--url", url, "--checks", CHECKS, "--phases", "coverage,fuzzing",
        "--max-examples", examples, "--seed", "1", "--warnings", "off", "--continue-on-failure", "--no-shrink",
        "--request-timeout", "30", *options,
    ]  # fmt: skip
    return subprocess.run(command, cwd=work).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
