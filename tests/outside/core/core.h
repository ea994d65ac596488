#error "Tapir's headers must not find a project's own core/core.h"
