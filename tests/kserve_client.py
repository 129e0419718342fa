"""What kserve's own client says of a server: `python kserve_client.py URL`, run by an interpreter that has kserve.

Prints one JSON object; ends with a traceback where the client does not work.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ROW = np.array([[1.5, -2.0, 3.25]], np.float32)


async def ask(url: str) -> dict[str, Any]:
    """The model is `scores` of the tests: its output is its input."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model": await client.is_model_ready(url, "scores"),
            "unknown": await client.is_model_ready(url, "nothing"),
        }
        for binary in (False, True):
            answer = await client.infer(url, make_request(ROW, binary=binary), model_name="scores")
            (output,) = answer.outputs
            found[f"answer_{binary}"] = output.as_numpy().reshape(-1).tolist()
        try:
            await client.infer(url, make_request(ROW[:, :2], binary=True), model_name="scores")
        except httpx.HTTPStatusError as exc:
            found["error"] = str(exc)
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        found["v1_live"] = await client.is_server_live(url)
        found["v1_model"] = await client.is_model_ready(url, "scores")
        found["v1_answer"] = await client.infer(url, {"instances": ROW.tolist()}, model_name="scores")
    return found


def make_request(array: np.ndarray, *, binary: bool) -> InferRequest:
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput("scores", {"binary_data": binary})]
    return InferRequest("scores", [tensor], request_outputs=outputs, request_id="7")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(ask(sys.argv[1]))))
