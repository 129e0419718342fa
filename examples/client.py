"""python examples/client.py PHOTO [URL]: what is in the photo?"""

import sys
from pathlib import Path

import httpx

photo, url = Path(sys.argv[1]), (sys.argv[2:] or ["http://127.0.0.1:8000"])[0]
answer = httpx.post(f"{url}/predict", content=photo.read_bytes(), headers={"content-type": "image/*"}, timeout=10)
body = answer.json()
if answer.is_error:
    sys.exit(f"{answer.status_code} {body['code']}: {body['error']} (request {body['request_id']})")
print(f"{body['model']}@{body['version']}")
for prediction in body["predictions"]:
    print(f"{prediction['confidence']:7.1%}  {prediction['label']}")
