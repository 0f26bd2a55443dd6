"""`python -m bench NAME [--quick] [--record]`: run one benchmark; the last line of output is one JSON object."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys

import bench
from bench._record import record


def main() -> int:
    """Parse the command line, run the benchmark, print its figures as JSON."""
    modules = [module.name for module in pkgutil.iter_modules(bench.__path__)]
    names = sorted(name.replace("_", "-") for name in modules if not name.startswith("_") and name != "peers")
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m bench NAME [--quick]\nNAME is one of: {', '.join(names)}")
        return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
    module = importlib.import_module(f"bench.{sys.argv[1].replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"python -m bench {sys.argv[1]}", description=module.__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller size, under a minute")
    parser.add_argument("--record", action="store_true", help="write the figures to bench/RESULTS.md")
    if hasattr(module, "options"):
        module.options(parser)
    arguments = parser.parse_args(sys.argv[2:])
    if arguments.quick and arguments.record:
        parser.error("the figures of record are full size: leave out --quick")
    figures = module.run(arguments)
    if arguments.record:
        record(" ".join(word for word in sys.argv[1:] if word != "--record"), figures)
    print(json.dumps({"bench": sys.argv[1], **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
