// up_proj and down_proj of several tokens in a float format: rows go through the caches once for all of them.
#ifndef PROSPARSE_TILED_FFN_H_
#define PROSPARSE_TILED_FFN_H_

#include "tiles.h"

namespace prosparse {

// Continues where TokenBatch::list_active of every token has run. batch.tiles is set.
void run_tiled(TokenBatch& batch);

}  // namespace prosparse

#endif  // PROSPARSE_TILED_FFN_H_
