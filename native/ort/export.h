#ifndef PROSPARSE_EXPORT_H_
#define PROSPARSE_EXPORT_H_

#if defined(_WIN32)
#define PROSPARSE_EXPORT extern "C" __declspec(dllexport)
#else
#define PROSPARSE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#endif  // PROSPARSE_EXPORT_H_
