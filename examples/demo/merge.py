"""The last job of the demo: adds up what the tasks wrote down, and prints a table.

    merge.py LIBRARY RESULTS COUNT

Fails unless there is a result for each of COUNT modules.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

PACKAGES_SHOWN = 12
SLOWEST_SHOWN = 5

library, results, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
found = [json.loads(file.read_text()) for file in results.glob("*.json")]
packages: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
for module in found:
    module["name"] = str(Path(module["file"]).relative_to(library))
    package = packages[module["name"].split("/")[0].removesuffix(".py")]
    package["modules"] += 1
    for column in ("lines", "functions", "classes"):
        package[column] += module.get(column, 0)

columns = ["modules", "lines", "functions", "classes"]
print(f"{'package':<16}" + "".join(f"{column:>11}" for column in columns))
by_lines = sorted(packages.items(), key=lambda item: -item[1]["lines"])
for name, package in by_lines[:PACKAGES_SHOWN]:
    print(f"{name:<16}" + "".join(f"{package[column]:>11,}" for column in columns))
rest = [package for _, package in by_lines[PACKAGES_SHOWN:]]
for name, those in ((f"{len(rest)} more", rest), ("all", list(packages.values()))):
    print(f"{name:<16}" + "".join(f"{sum(package[column] for package in those):>11,}" for column in columns))
print("\nslowest to parse:")
for module in sorted(found, key=lambda module: -module["seconds"])[:SLOWEST_SHOWN]:
    print(f"  {module['seconds'] * 1000:>6.0f} ms  {module['name']}")

if len(found) != count:
    sys.exit(f"{len(found)} results for {count} modules")
