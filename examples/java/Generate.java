import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/**
 * Greedy decoding of an artifact, with the sparse kernels: token ids in, token ids out.
 *
 * <p>{@code java -cp onnxruntime.jar Generate.java MODEL.onnx LIBRARY COUNT ID...} where LIBRARY is lib/PLATFORM/FILE next
 * to MODEL.onnx. On Android, copy the model's folder and lib/android-arm64 to the app's own files and pass their paths.
 */
public final class Generate {
    private static final String PAST = "past_key_values.";

    public static void main(String[] words) throws OrtException {
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR);
            options.registerCustomOpLibrary(words[1]);
            long[] prompt = Arrays.stream(words).skip(3).mapToLong(Long::parseLong).toArray();
            try (OrtSession session = environment.createSession(words[0], options)) {
                decode(environment, session, prompt, Integer.parseInt(words[2]));
            }
        }
    }

    private static void decode(OrtEnvironment environment, OrtSession session, long[] prompt, int count)
            throws OrtException {
        Map<String, OnnxTensor> past = new HashMap<>();
        for (String name : session.getInputNames()) {
            if (!name.startsWith(PAST)) continue;
            past.put(name, empty(environment, (TensorInfo) session.getInputInfo().get(name).getInfo()));
        }
        long[] ids = prompt;
        OrtSession.Result last = null; // owns the KV cache that the next step reads
        for (int length = 0; count > 0; --count) {
            long[] mask = new long[length + ids.length];
            long[] positions = new long[ids.length];
            Arrays.fill(mask, 1);
            Arrays.setAll(positions, i -> mask.length - positions.length + i);
            OrtSession.Result results;
            try (OnnxTensor tokens = row(environment, ids);
                    OnnxTensor ones = row(environment, mask);
                    OnnxTensor places = row(environment, positions)) {
                Map<String, OnnxTensor> feeds = new HashMap<>(past);
                feeds.put("input_ids", tokens);
                feeds.put("attention_mask", ones);
                if (session.getInputNames().contains("position_ids")) feeds.put("position_ids", places);
                results = session.run(feeds);
            }
            if (last != null) last.close();
            last = results;
            results.forEach(output -> {
                if (output.getKey().startsWith("present.")) {
                    past.put(output.getKey().replaceFirst("present\\.", PAST), (OnnxTensor) output.getValue());
                }
            });
            length += ids.length;
            ids = new long[] {bestToken((OnnxTensor) results.get("logits").orElseThrow())};
            System.out.print(ids[0] + (count > 1 ? " " : "\n"));
        }
        if (last != null) last.close();
    }

    /** Returns a KV cache for batch 1 and no tokens yet: of floats, or of bytes after --kv-cache i8 or i8-token. */
    private static OnnxTensor empty(OrtEnvironment environment, TensorInfo info) throws OrtException {
        long[] shape = info.getShape();
        shape[0] = 1;
        shape[2] = 0;
        return info.type == OnnxJavaType.INT8
                ? OnnxTensor.createTensor(environment, ByteBuffer.allocateDirect(0), shape, OnnxJavaType.INT8)
                : OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), shape);
    }

    private static OnnxTensor row(OrtEnvironment environment, long[] values) throws OrtException {
        return OnnxTensor.createTensor(environment, LongBuffer.wrap(values), new long[] {1, values.length});
    }

    /** Returns the token with the highest of the last position's logits. */
    private static long bestToken(OnnxTensor logits) {
        FloatBuffer values = logits.getFloatBuffer();
        int vocabulary = (int) logits.getInfo().getShape()[2];
        int start = values.capacity() - vocabulary;
        int best = 0;
        for (int token = 1; token < vocabulary; ++token) {
            if (values.get(start + token) > values.get(start + best)) best = token;
        }
        return best;
    }
}
