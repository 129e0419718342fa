// node examples/fetch.mjs PHOTO [URL] — in a browser the body is the File of an <input type="file">.
import { readFile } from "node:fs/promises";

const [photo, url = "http://127.0.0.1:8000"] = process.argv.slice(2);
const response = await fetch(`${url}/predict?top_k=3`, {
  method: "POST",
  headers: { "Content-Type": "image/jpeg" },
  body: await readFile(photo),
});
const answer = await response.json();
if (!response.ok) throw new Error(`${response.status} ${answer.code}: ${answer.error}`);
for (const { label, confidence } of answer.predictions) console.log(`${(confidence * 100).toFixed(1)} %  ${label}`);
