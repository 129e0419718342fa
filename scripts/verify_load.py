"""verify_load.py URL PHOTO -- COMMAND…: classify the photo from 8 connections, and run the command meanwhile.

Prints the answers by status and exits with 1 where one was not 200 or a connection failed. The standard library alone.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

CONNECTIONS = 8
SECONDS_BEFORE, SECONDS_AFTER = 1.0, 5.0


def ask(url: str, photo: bytes, end: threading.Event, counts: Counter[str]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    while not end.is_set():
        try:
            connection.request("POST", parts.path, photo, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            counts[str(answer.status)] += 1
        except (OSError, http.client.HTTPException) as exc:
            counts[type(exc).__name__] += 1
            connection.close()


def main() -> int:
    url, photo, _, *command = sys.argv[1:]
    end, tallies = threading.Event(), [Counter[str]() for _ in range(CONNECTIONS)]
    content = Path(photo).read_bytes()
    threads = [threading.Thread(target=ask, args=(url, content, end, tally)) for tally in tallies]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS_BEFORE)
    before = sum(sum(tally.values()) for tally in tallies)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    time.sleep(SECONDS_AFTER)
    end.set()
    for thread in threads:
        thread.join()
    counts = sum(tallies, Counter[str]())
    done = sum(counts.values())
    sys.stdout.write(
        f"  one replica killed under load: {before} answers before, {done - before} after; {dict(counts)}\n"
    )
    return 0 if set(counts) == {"200"} and done > before else 1


if __name__ == "__main__":
    sys.exit(main())
