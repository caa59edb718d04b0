// Memory of the model file.
#ifndef PROSPARSE_FILE_PAGES_H_
#define PROSPARSE_FILE_PAGES_H_

#include <cstddef>

namespace prosparse {

// Releases the pages of a mapped file; they are read again when needed. Leaves anything else alone (memory without a
// file behind it, systems other than Linux and Windows). May throw std::bad_alloc.
void drop_file_pages(const void* data, size_t bytes);

}  // namespace prosparse

#endif  // PROSPARSE_FILE_PAGES_H_
