"""`python -m bench NAME [--quick]`: run one benchmark; the last line of its output is one JSON object."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys

import bench


def main() -> int:
    """Parse the command line, run the benchmark, print its figures as JSON."""
    names = sorted(
        m.name for m in pkgutil.iter_modules(bench.__path__) if not m.name.startswith("_") and m.name != "peers"
    )
    if len(sys.argv) < 2 or sys.argv[1] not in [name.replace("_", "-") for name in names]:
        print(f"usage: python -m bench NAME [--quick]\nNAME is one of: {', '.join(n.replace('_', '-') for n in names)}")
        return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
    module = importlib.import_module(f"bench.{sys.argv[1].replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"python -m bench {sys.argv[1]}", description=module.__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller size, under a minute")
    if hasattr(module, "options"):
        module.options(parser)
    figures = module.run(parser.parse_args(sys.argv[2:]))
    print(json.dumps({"bench": sys.argv[1], **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
