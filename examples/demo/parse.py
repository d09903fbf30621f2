"""One task of the demo: parses one module and writes down what is in it.

    parse.py MODULE.py RESULT.json

Only what is needed is imported: most of the time of a small task is Python's own start.
"""

import ast
import json
import sys
import time

source, result = sys.argv[1:]
with open(source, "rb") as file:  # noqa: PTH123 (see above)
    text = file.read()
began = time.perf_counter()
try:
    tree = ast.parse(text, source)
except SyntaxError as error:
    # Some files of the library are wrong on purpose.
    found = {"error": str(error)}
else:
    kinds = [type(node) for node in ast.walk(tree)]
    found = {
        "functions": kinds.count(ast.FunctionDef) + kinds.count(ast.AsyncFunctionDef),
        "classes": kinds.count(ast.ClassDef),
    }
found |= {"file": source, "lines": text.count(b"\n"), "seconds": time.perf_counter() - began}
with open(result, "w") as file:  # noqa: PTH123 (see above)
    json.dump(found, file)
