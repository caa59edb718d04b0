#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

// Prefill of one prompt, greedy choice of the next token.
int main() {
  Ort::Env env;
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(ORT_TSTR("out/model/lib/linux-x86_64/libprosparse_ops.so"));
  Ort::Session session(env, ORT_TSTR("out/model/demo.onnx"), options);

  std::vector<int64_t> ids = {1, 5, 9}, mask(3, 1), positions = {0, 1, 2};
  const std::array<int64_t, 2> shape = {1, 3};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto tensor = [&](std::vector<int64_t>& values) {
    return Ort::Value::CreateTensor<int64_t>(memory, values.data(), values.size(), shape.data(), shape.size());
  };

  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;
  std::vector<Ort::Value> inputs;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    std::string name = session.GetInputNameAllocated(i, allocator).get();
    if (name == "input_ids") {
      inputs.push_back(tensor(ids));
    } else if (name == "attention_mask") {
      inputs.push_back(tensor(mask));
    } else if (name == "position_ids") {
      inputs.push_back(tensor(positions));
    } else {  // past_key_values.N.key and .value: batch 1, no tokens yet
      auto type = session.GetInputTypeInfo(i);
      std::vector<int64_t> past = type.GetTensorTypeAndShapeInfo().GetShape();
      past[0] = 1;
      past[2] = 0;
      inputs.push_back(Ort::Value::CreateTensor<float>(allocator, past.data(), past.size()));
    }
    names.push_back(std::move(name));
  }
  std::vector<const char*> input_names;
  for (const auto& name : names) input_names.push_back(name.c_str());
  const char* output_names[] = {"logits"};
  auto outputs = session.Run(Ort::RunOptions{}, input_names.data(), inputs.data(), inputs.size(), output_names, 1);

  const auto sizes = outputs[0].GetTensorTypeAndShapeInfo().GetShape();  // batch, positions, vocabulary
  const float* last = outputs[0].GetTensorData<float>() + (sizes[1] - 1) * sizes[2];
  int64_t best = 0;
  for (int64_t token = 1; token < sizes[2]; ++token) {
    if (last[token] > last[best]) best = token;
  }
  std::cout << best << "\n";
}
