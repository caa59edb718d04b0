// Greedy decoding of an artifact, for onnxruntime-node and onnxruntime-web alike: token ids in, token ids out.
// Neither can register a library of operators, so the function bodies run: densely, with the same tokens.

const PAST = "past_key_values.";

// Returns the token with the highest of the last position's logits.
function bestToken(logits) {
  const vocabulary = logits.dims[2];
  const last = logits.data.subarray(logits.data.length - vocabulary);
  let best = 0;
  for (let token = 1; token < vocabulary; ++token) if (last[token] > last[best]) best = token;
  return best;
}

// Yields `count` tokens after `prompt`, an array of token ids. `ort` is the imported package.
export async function* decode(ort, session, prompt, count) {
  const row = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const past = {};
  for (const input of session.inputMetadata) {
    if (!input.name.startsWith(PAST)) continue;
    const [, heads, , width] = input.shape; // batch 1, and no tokens yet
    const nothing = input.type === "int8" ? new Int8Array(0) : new Float32Array(0); // int8: --kv-cache i8, i8-token
    past[input.name] = new ort.Tensor(input.type, nothing, [1, heads, 0, width]);
  }
  let ids = prompt;
  for (let length = 0; count > 0; --count) {
    const feeds = { input_ids: row(ids), attention_mask: row(Array(length + ids.length).fill(1)), ...past };
    if (session.inputNames.includes("position_ids")) feeds.position_ids = row(ids.map((_, i) => length + i));
    const results = await session.run(feeds);
    for (const name of Object.keys(past)) past[name] = results[name.replace(PAST, "present.")];
    length += ids.length;
    ids = [bestToken(results.logits)];
    yield ids[0];
  }
}
