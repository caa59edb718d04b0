// Greedy decoding of an artifact, with the sparse kernels: token ids in, token ids out.
//
//   generate MODEL.onnx COUNT ID...
//
// The operator library of macOS or iOS is linked into the program, and its entry point declared in the bridging header:
//
//   struct OrtStatus* RegisterCustomOps(struct OrtSessionOptions*, const struct OrtApiBase*);
//
// Needs onnxruntime's Swift package (OnnxRuntimeBindings). Its sessions do not tell types and shapes of inputs: this program
// takes a float32 KV cache, and its shape from config.json.
import Foundation
import OnnxRuntimeBindings

let pastPrefix = "past_key_values."

// A KV cache for batch 1 and no tokens yet.
func emptyPast(_ model: String) throws -> ORTValue {
    let file = URL(fileURLWithPath: model).deletingLastPathComponent().appendingPathComponent("config.json")
    let config = try JSONSerialization.jsonObject(with: Data(contentsOf: file)) as! [String: Any]
    let heads = config["num_attention_heads"] as! Int
    let keyHeads = config["num_key_value_heads"] as? Int ?? heads
    let width = config["head_dim"] as? Int ?? (config["hidden_size"] as! Int) / heads
    let shape = [1, keyHeads, 0, width].map { NSNumber(value: $0) }
    return try ORTValue(tensorData: NSMutableData(), elementType: .float, shape: shape)
}

func row(_ values: [Int64]) throws -> ORTValue {
    let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
    return try ORTValue(tensorData: data, elementType: .int64, shape: [1, NSNumber(value: values.count)])
}

// The token with the highest of the last position's logits.
func bestToken(_ logits: ORTValue) throws -> Int64 {
    let vocabulary = try logits.tensorTypeAndShapeInfo().shape[2].intValue
    let all: [Float] = (try logits.tensorData() as Data).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    let last = all.suffix(vocabulary)
    return Int64(last.indices.max { last[$0] < last[$1] }! - last.startIndex)
}

func decode(_ model: String, _ prompt: [Int64], count: Int) throws -> [Int64] {
    let options = try ORTSessionOptions()
    try options.registerCustomOps(functionPointer: RegisterCustomOps)
    let session = try ORTSession(env: ORTEnv(loggingLevel: .error), modelPath: model, sessionOptions: options)
    let names = try session.inputNames()
    var past: [String: ORTValue] = [:]
    for name in names where name.hasPrefix(pastPrefix) { past[name] = try emptyPast(model) }
    let outputs = past.keys.map { "present.\($0.dropFirst(pastPrefix.count))" } + ["logits"]
    var (ids, length, tokens): ([Int64], Int, [Int64]) = (prompt, 0, [])
    while tokens.count < count {
        let end = length + ids.count
        var inputs = past
        inputs["input_ids"] = try row(ids)
        inputs["attention_mask"] = try row([Int64](repeating: 1, count: end))
        if names.contains("position_ids") { inputs["position_ids"] = try row((length..<end).map { Int64($0) }) }
        let results = try session.run(withInputs: inputs, outputNames: Set(outputs), runOptions: nil)
        for name in past.keys { past[name] = results["present.\(name.dropFirst(pastPrefix.count))"]! }
        length = end
        ids = [try bestToken(results["logits"]!)]
        tokens += ids
    }
    return tokens
}

let words = CommandLine.arguments
if words.count < 4 {
    FileHandle.standardError.write(Data("usage: generate MODEL.onnx COUNT ID...\n".utf8))
    exit(2)
}
let tokens = try decode(words[1], words[3...].map { Int64($0)! }, count: Int(words[2])!)
print(tokens.map(String.init).joined(separator: " "))
