// Greedy decoding of an artifact in C++, with the sparse kernels: token ids in, token ids out.
//
//   generate MODEL.onnx LIBRARY COUNT ID...
//
// LIBRARY is lib/PLATFORM/FILE next to MODEL.onnx; "-" runs the function bodies instead, densely.
//
//   g++ -std=c++17 -O2 generate.cc -I ORT/include -L ORT/lib -lonnxruntime -o generate    # ORT: a release of
//   onnxruntime
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace {

Ort::Session open_session(const Ort::Env& env, const std::filesystem::path& model,
                          const std::filesystem::path& library) {
  Ort::SessionOptions options;
  if (library != "-") options.RegisterCustomOpsLibrary(library.c_str());
  return Ort::Session(env, model.c_str(), options);
}

// Batch 1, and no tokens yet.
Ort::Value empty_past(const Ort::Session& session, size_t index, OrtAllocator* allocator) {
  const Ort::TypeInfo type = session.GetInputTypeInfo(index);
  const auto info = type.GetTensorTypeAndShapeInfo();
  std::vector<int64_t> shape = info.GetShape();
  shape[0] = 1;
  shape[2] = 0;
  return Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), info.GetElementType());  // float or int8
}

class Decoder {
 public:
  explicit Decoder(Ort::Session session) : session_(std::move(session)) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      const std::string name = session_.GetInputNameAllocated(i, allocator).get();
      const std::string prefix = "past_key_values.";
      if (name == "position_ids") takes_positions_ = true;
      if (name.rfind(prefix, 0) != 0) continue;  // logits_to_keep has a default
      past_inputs_.push_back(name);
      past_outputs_.push_back("present." + name.substr(prefix.size()));
      past_.push_back(empty_past(session_, i, allocator));
    }
  }

  // Runs new tokens after those of earlier calls; returns the next one.
  int64_t step(std::vector<int64_t> ids) {
    std::vector<int64_t> positions(ids.size()), mask(length_ + ids.size(), 1);
    for (size_t i = 0; i < ids.size(); ++i) positions[i] = static_cast<int64_t>(length_ + i);
    std::vector<const char*> inputs = {"input_ids", "attention_mask"}, outputs = {"logits"};
    std::vector<Ort::Value> values;
    values.push_back(row(ids));
    values.push_back(row(mask));
    if (takes_positions_) {
      inputs.push_back("position_ids");
      values.push_back(row(positions));
    }
    for (size_t i = 0; i < past_.size(); ++i) {
      inputs.push_back(past_inputs_[i].c_str());
      outputs.push_back(past_outputs_[i].c_str());
      values.push_back(std::move(past_[i]));
    }
    std::vector<Ort::Value> results =
        session_.Run(Ort::RunOptions{}, inputs.data(), values.data(), values.size(), outputs.data(), outputs.size());
    for (size_t i = 0; i < past_.size(); ++i) past_[i] = std::move(results[i + 1]);
    length_ += ids.size();
    const std::vector<int64_t> shape =
        results[0].GetTensorTypeAndShapeInfo().GetShape();  // batch, positions, vocabulary
    const float* last = results[0].GetTensorData<float>() + (shape[1] - 1) * shape[2];
    return std::max_element(last, last + shape[2]) - last;
  }

 private:
  Ort::Value row(std::vector<int64_t>& values) const {
    const int64_t shape[] = {1, static_cast<int64_t>(values.size())};
    return Ort::Value::CreateTensor<int64_t>(memory_, values.data(), values.size(), shape, 2);
  }

  Ort::Session session_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  std::vector<std::string> past_inputs_, past_outputs_;
  std::vector<Ort::Value> past_;
  bool takes_positions_ = false;
  size_t length_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: generate MODEL.onnx LIBRARY COUNT ID...\n";
    return 2;
  }
  try {
    const Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "generate");
    Decoder decoder(open_session(env, argv[1], argv[2]));
    std::vector<int64_t> ids;
    for (int i = 4; i < argc; ++i) ids.push_back(std::stoll(argv[i]));
    for (int left = std::stoi(argv[3]); left > 0; --left) {
      ids = {decoder.step(std::move(ids))};
      std::cout << ids[0] << (left > 1 ? " " : "\n");
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
