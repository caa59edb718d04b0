/* Greedy decoding of an artifact in C, with the sparse kernels: token ids in, token ids out.
 *
 *   generate RUNTIME MODEL.onnx LIBRARY COUNT ID... [--require-library]
 *
 * RUNTIME is onnxruntime's library (in Python's wheel: onnxruntime/capi/libonnxruntime.so.*, onnxruntime.dll), LIBRARY
 * the operators' (lib/PLATFORM/ next to MODEL.onnx). If LIBRARY cannot be used, the operators' function bodies run,
 * which give the same tokens at dense speed; with --require-library that is an error.
 *
 *   cc -std=c11 -O2 generate.c -o generate -ldl */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_slice.h"

#if defined(_WIN32)
#include <wchar.h>
#include <windows.h>

#include <shellapi.h> /* needs windows.h */
#define TEXT_FORMAT "%ls"
#define same_text(a, b) (wcscmp(a, L##b) == 0)
#define to_number(text) wcstoll(text, NULL, 10)
#else
#include <dlfcn.h>
#define TEXT_FORMAT "%s"
#define same_text(a, b) (strcmp(a, b) == 0)
#define to_number(text) strtoll(text, NULL, 10)
#endif

enum { MOST_INPUTS = 1024, MOST_TOKENS = 4096 };
static const OrtApi* api;

static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "error: %s\n", api->GetErrorMessage(status));
  exit(1);
}

static const OrtApiBase* open_runtime(const ORTCHAR_T* path) {
#if defined(_WIN32)
  HMODULE library = LoadLibraryW(path);
  void* found = library != NULL ? (void*)GetProcAddress(library, "OrtGetApiBase") : NULL;
#else
  void* library = dlopen(path, RTLD_NOW);
  void* found = library != NULL ? dlsym(library, "OrtGetApiBase") : NULL;
#endif
  if (found == NULL) {
    fprintf(stderr, "error: " TEXT_FORMAT ": expected onnxruntime's library, cannot load it\n", path);
    exit(1);
  }
  const OrtApiBase* (*get_base)(void);
  memcpy(&get_base, &found, sizeof(get_base));
  return get_base();
}

static OrtSession* open_session(const OrtEnv* env, const ORTCHAR_T* model, const ORTCHAR_T* library, int required) {
  OrtSessionOptions* options;
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  OrtStatus* status = api->RegisterCustomOpsLibrary_V2(options, library);
  if (status != NULL) {
    fprintf(stderr, "%s: " TEXT_FORMAT ": %s%s\n", required ? "error" : "warning", library,
            api->GetErrorMessage(status), required ? "" : "; dense function bodies run instead");
    if (required) exit(1);
    api->ReleaseStatus(status);
    api->ReleaseSessionOptions(options); /* a failed registration leaves nothing behind in new options */
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, 1));
  }
  OrtSession* session;
  check(api->CreateSession(env, model, options, &session));
  api->ReleaseSessionOptions(options);
  return session;
}

/* An input that takes the KV cache: `past_key_values.N.key`. Its output is `present.N.key`. */
typedef struct {
  char input[128], output[128];
  OrtValue* value;
} Past;

static OrtMemoryInfo* memory;
static Past pasts[MOST_INPUTS];
static size_t past_count;
static int takes_positions;

static OrtValue* tensor(void* data, size_t bytes, const int64_t* shape, size_t rank, ONNXTensorElementDataType type) {
  OrtValue* value;
  check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, rank, type, &value));
  return value;
}

/* Batch 1, and no tokens yet. */
static OrtValue* empty_past(const OrtSession* session, size_t index) {
  static float nothing[1];
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* info;
  ONNXTensorElementDataType element; /* float, or int8 with a KV cache in 8 bits */
  int64_t shape[4];
  check(api->SessionGetInputTypeInfo(session, index, &type));
  check(api->CastTypeInfoToTensorInfo(type, &info));
  check(api->GetTensorElementType(info, &element));
  check(api->GetDimensions(info, shape, 4));
  api->ReleaseTypeInfo(type);
  shape[0] = 1;
  shape[2] = 0;
  return tensor(nothing, 0, shape, 4, element);
}

static void read_inputs(const OrtSession* session) {
  OrtAllocator* allocator;
  size_t count;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  check(api->SessionGetInputCount(session, &count));
  for (size_t i = 0; i < count; ++i) {
    char* name;
    check(api->SessionGetInputName(session, i, allocator, &name));
    if (strcmp(name, "position_ids") == 0) takes_positions = 1;
    if (strncmp(name, "past_key_values.", 16) == 0 && past_count < MOST_INPUTS) {
      Past* past = &pasts[past_count++];
      snprintf(past->input, sizeof(past->input), "%s", name);
      snprintf(past->output, sizeof(past->output), "present.%s", name + 16);
      past->value = empty_past(session, i);
    }
    check(api->AllocatorFree(allocator, name));
  }
}

/* The token with the highest of the last position's logits. */
static int64_t best_token(OrtValue* logits) {
  OrtTensorTypeAndShapeInfo* info;
  int64_t shape[3]; /* batch, positions, vocabulary */
  float* data;
  check(api->GetTensorTypeAndShape(logits, &info));
  check(api->GetDimensions(info, shape, 3));
  check(api->GetTensorMutableData(logits, (void**)&data));
  api->ReleaseTensorTypeAndShapeInfo(info);
  const float* last = data + (shape[1] - 1) * shape[2];
  int64_t best = 0;
  for (int64_t token = 1; token < shape[2]; ++token) {
    if (last[token] > last[best]) best = token;
  }
  return best;
}

/* Runs `count` new tokens after `past` others and returns the next one. */
static int64_t step(OrtSession* session, int64_t* ids, int64_t past, int64_t count) {
  static int64_t mask[MOST_TOKENS], positions[MOST_TOKENS];
  const char *inputs[MOST_INPUTS + 3] = {"input_ids", "attention_mask", "position_ids"},
                                   *outputs[MOST_INPUTS + 1] = {"logits"};
  OrtValue *values[MOST_INPUTS + 3], *results[MOST_INPUTS + 1] = {NULL};
  const int64_t shape[2] = {1, count}, whole[2] = {1, past + count};
  const size_t first = takes_positions ? 3 : 2;
  for (int64_t i = 0; i < past + count; ++i) mask[i] = 1;
  for (int64_t i = 0; i < count; ++i) positions[i] = past + i;
  values[0] = tensor(ids, count * sizeof(int64_t), shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  values[1] = tensor(mask, (past + count) * sizeof(int64_t), whole, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  if (takes_positions) {
    values[2] = tensor(positions, count * sizeof(int64_t), shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  }
  for (size_t i = 0; i < past_count; ++i) {
    inputs[first + i] = pasts[i].input;
    values[first + i] = pasts[i].value;
    outputs[1 + i] = pasts[i].output;
  }
  check(api->Run(session, NULL, inputs, (const OrtValue* const*)values, first + past_count, outputs, 1 + past_count,
                 results));
  const int64_t next = best_token(results[0]);
  api->ReleaseValue(results[0]);
  for (size_t i = 0; i < first; ++i) api->ReleaseValue(values[i]);
  for (size_t i = 0; i < past_count; ++i) {
    api->ReleaseValue(pasts[i].value);
    pasts[i].value = results[1 + i];
  }
  return next;
}

static int run(int argc, ORTCHAR_T** argv) {
  const int required = argc > 6 && same_text(argv[argc - 1], "--require-library");
  const int prompt_tokens = argc - 5 - required;
  if (prompt_tokens < 1 || prompt_tokens + to_number(argv[4]) > MOST_TOKENS) {
    fprintf(stderr, "usage: generate RUNTIME MODEL.onnx LIBRARY COUNT ID... [--require-library]\n");
    return 2;
  }
  const OrtApiBase* base = open_runtime(argv[1]);
  api = base->GetApi(ORT_API_VERSION);
  if (api == NULL) {
    fprintf(stderr, "error: expected onnxruntime 1.18 or newer, got %s\n", base->GetVersionString());
    return 1;
  }
  int64_t ids[MOST_TOKENS], past = 0, count = prompt_tokens;
  for (int i = 0; i < prompt_tokens; ++i) ids[i] = to_number(argv[5 + i]);
  OrtEnv* env;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "generate", &env));
  check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  OrtSession* session = open_session(env, argv[2], argv[3], required);
  read_inputs(session);
  for (int64_t left = to_number(argv[4]); left > 0; --left) {
    const int64_t next = step(session, ids, past, count);
    printf("%lld%s", (long long)next, left > 1 ? " " : "\n");
    past += count;
    count = 1;
    ids[0] = next;
  }
  for (size_t i = 0; i < past_count; ++i) api->ReleaseValue(pasts[i].value);
  api->ReleaseSession(session);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseEnv(env);
  return 0;
}

#if defined(_WIN32)
int main(void) { /* the command line in Unicode */
  int argc;
  wchar_t** argv = CommandLineToArgvW(GetCommandLineW(), &argc);
  return run(argc, argv);
}
#else
int main(int argc, char** argv) { return run(argc, argv); }
#endif
