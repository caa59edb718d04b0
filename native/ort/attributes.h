// Reading a node's name and attributes.
#ifndef PROSPARSE_ORT_ATTRIBUTES_H_
#define PROSPARSE_ORT_ATTRIBUTES_H_

#include <string>

#include "status.h"

namespace prosparse::ort {

inline std::string node_name(const Api& api, const KernelInfo* info) {
  char name[256] = "";
  size_t size = sizeof(name);
  if (Status* status = api.KernelInfo_GetNodeName(info, name, &size)) {  // longer: not worth an error
    api.ReleaseStatus(status);
    return "?";
  }
  return name;
}

inline std::string string_attribute(const Api& api, const KernelInfo* info, const char* name,
                                    const std::string& where) {
  char value[64] = "";
  size_t size = sizeof(value);
  if (Status* status = api.KernelInfoGetAttribute_string(info, name, value, &size)) {
    api.ReleaseStatus(status);
    throw InvalidArgument(where + ": needs a string attribute '" + name + "' of up to 63 characters");
  }
  return value;
}

inline float float_attribute(const Api& api, const KernelInfo* info, const char* name, const std::string& where) {
  float value = 0.0f;
  if (Status* status = api.KernelInfoGetAttribute_float(info, name, &value)) {
    api.ReleaseStatus(status);
    throw InvalidArgument(where + ": needs a float attribute '" + name + "'");
  }
  return value;
}

inline int64_t int_attribute(const Api& api, const KernelInfo* info, const char* name, const std::string& where) {
  int64_t value = 0;
  if (Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
    api.ReleaseStatus(status);
    throw InvalidArgument(where + ": needs an integer attribute '" + name + "'");
  }
  return value;
}

}  // namespace prosparse::ort

#endif  // PROSPARSE_ORT_ATTRIBUTES_H_
