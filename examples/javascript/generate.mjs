// node generate.mjs MODEL.onnx COUNT ID...    (after: npm install --ignore-scripts onnxruntime-node)
import * as ort from "onnxruntime-node";

import { decode } from "./decode.mjs";

const [model, count, ...prompt] = process.argv.slice(2);
if (prompt.length === 0) {
  console.error("usage: node generate.mjs MODEL.onnx COUNT ID...");
  process.exit(2);
}
const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
const tokens = [];
for await (const token of decode(ort, session, prompt.map(Number), Number(count))) tokens.push(token);
console.log(tokens.join(" "));
