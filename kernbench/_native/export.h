// The one macro of the core: marks what Python calls.
#pragma once

#ifdef _WIN32
#define KB_EXPORT extern "C" __declspec(dllexport)
#else
#define KB_EXPORT extern "C" __attribute__((visibility("default")))
#endif
