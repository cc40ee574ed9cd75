#include "engine/clock.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace deeprecsys::engine {

void PreciseTimers() {
#ifdef __linux__
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);  // ns, in place of 50 us
#endif
}

}  // namespace deeprecsys::engine
