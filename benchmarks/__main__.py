"""Run the speed benchmarks: `python -m benchmarks`."""

import sys

from benchmarks import training_speed

if __name__ == "__main__":
    sys.exit(training_speed.main())
