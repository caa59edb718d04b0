// Greedy decoding of an artifact, with the sparse kernels: token ids in, token ids out.
//
//   Generate MODEL.onnx LIBRARY COUNT ID...
//
// LIBRARY is lib/PLATFORM/FILE next to MODEL.onnx. Needs the package Microsoft.ML.OnnxRuntime.
using System;
using System.Collections.Generic;
using System.Linq;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

internal static class Generate
{
    private const string Past = "past_key_values.";

    private static int Main(string[] words)
    {
        if (words.Length < 4)
        {
            Console.Error.WriteLine("usage: Generate MODEL.onnx LIBRARY COUNT ID...");
            return 2;
        }
        using (var options = new SessionOptions { LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR })
        {
            options.RegisterCustomOpLibrary(words[1]);
            using (var session = new InferenceSession(words[0], options))
            {
                var prompt = words.Skip(3).Select(long.Parse).ToArray();
                Console.WriteLine(string.Join(" ", Decode(session, prompt, int.Parse(words[2]))));
            }
        }
        return 0;
    }

    private static IEnumerable<long> Decode(InferenceSession session, long[] prompt, int count)
    {
        var past = new Dictionary<string, OrtValue>();
        foreach (var input in session.InputMetadata.Where(input => input.Key.StartsWith(Past)))
        {
            var shape = input.Value.Dimensions;  // batch 1, and no tokens yet
            past[input.Key] = Empty(input.Value.ElementDataType, new long[] { 1, shape[1], 0, shape[3] });
        }
        var names = past.Keys.ToArray();
        var outputs = names.Select(name => "present." + name.Substring(Past.Length)).Prepend("logits").ToArray();
        var ids = prompt;
        for (var length = 0; count > 0; --count)
        {
            var inputs = new Dictionary<string, OrtValue>(past)
            {
                ["input_ids"] = Row(ids),
                ["attention_mask"] = Row(Enumerable.Repeat(1L, length + ids.Length).ToArray()),
            };
            if (session.InputMetadata.ContainsKey("position_ids"))
            {
                inputs["position_ids"] = Row(Enumerable.Range(length, ids.Length).Select(i => (long)i).ToArray());
            }
            using (var run = new RunOptions())
            {
                var results = session.Run(run, inputs, outputs);  // owns the KV cache that the next step reads
                foreach (var value in inputs.Values) value.Dispose();
                for (var i = 0; i < names.Length; ++i) past[names[i]] = results[i + 1];
                length += ids.Length;
                ids = new[] { BestToken(results[0]) };
                results[0].Dispose();
            }
            yield return ids[0];
        }
        foreach (var value in past.Values) value.Dispose();
    }

    // A KV cache holds float, or 8-bit integers after --kv-cache i8 or i8-token.
    private static OrtValue Empty(TensorElementType type, long[] shape) =>
        type == TensorElementType.Int8 ? OrtValue.CreateTensorValueFromMemory(new sbyte[0], shape)
                                       : OrtValue.CreateTensorValueFromMemory(new float[0], shape);

    private static OrtValue Row(long[] values) =>
        OrtValue.CreateTensorValueFromMemory(values, new long[] { 1, values.Length });

    // The token with the highest of the last position's logits.
    private static long BestToken(OrtValue logits)
    {
        var vocabulary = (int)logits.GetTensorTypeAndShape().Shape[2];
        var values = logits.GetTensorDataAsSpan<float>();
        var last = values.Slice(values.Length - vocabulary);
        var best = 0;
        for (var token = 1; token < vocabulary; ++token)
        {
            if (last[token] > last[best]) best = token;
        }
        return best;
    }
}
