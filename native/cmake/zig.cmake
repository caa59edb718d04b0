# Cross-build with zig's clang (`pip install ziglang`), which brings libc, libc++ and import libraries of its targets:
#
#   cmake -S native -B build -DCMAKE_TOOLCHAIN_FILE=cmake/zig.cmake -DPROSPARSE_ZIG=ZIG -DPROSPARSE_ZIG_TARGET=TARGET
#
# `make libraries` does this for every platform (packaging/libraries.py).
set(PROSPARSE_ZIG "" CACHE FILEPATH "The zig executable")
set(PROSPARSE_ZIG_TARGET "" CACHE STRING "Its target, for example aarch64-linux-gnu.2.17")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES PROSPARSE_ZIG PROSPARSE_ZIG_TARGET)

if(PROSPARSE_ZIG_TARGET MATCHES "^([a-z0-9_]+)-([a-z]+)")
  set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
  if(CMAKE_MATCH_2 STREQUAL "windows")
    set(CMAKE_SYSTEM_NAME Windows)
  elseif(CMAKE_MATCH_2 STREQUAL "macos")
    set(CMAKE_SYSTEM_NAME Darwin)
    set(CMAKE_INSTALL_NAME_TOOL /usr/bin/true)  # Apple's; CMake asks for it, and nothing here needs it
  else()
    set(CMAKE_SYSTEM_NAME Linux)
  endif()
endif()
set(CMAKE_CXX_COMPILER ${PROSPARSE_ZIG} c++)
set(CMAKE_CXX_COMPILER_TARGET ${PROSPARSE_ZIG_TARGET})
set(CMAKE_CXX_ARCHIVE_CREATE "${PROSPARSE_ZIG} ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "${PROSPARSE_ZIG} ar q <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "${PROSPARSE_ZIG} ranlib <TARGET>")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s")  # without symbols and debug information, which zig's libc++ has
