// What this library was built from, so that Python can refuse one that does not fit it.
#include "export.h"

KB_EXPORT const char *kb_sources() { return KB_SOURCES; }
