"""Rego engines: regopy (rego-cpp) always; regorus, which Trustee itself has, where opa-eval is installed."""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Engine = Callable[[str, Any, Any, str], Any]
# What Trustee's attestation service adds to Rego: null where a Reference Value is missing.
REFERENCES = "\n\nquery_reference_value(id) := object.get(data.reference, id, null)\n"


def regopy(source: str, data: Any, given: Any, rule: str) -> Any:
    """The value of `data.policy.<rule>`; None where it has none."""
    from regopy import Interpreter

    interpreter = Interpreter()
    interpreter.add_module("policy", source)
    interpreter.add_data(data)
    interpreter.set_input(given)
    said = str(interpreter.query(f"found = data.policy.{rule}"))
    return None if said == "undefined" else json.loads(said)["bindings"]["found"]


def regorus(source: str, data: Any, given: Any, rule: str) -> Any:
    from opa_eval import OpaEval

    with tempfile.NamedTemporaryFile("w", suffix=".rego") as file:
        file.write(source)
        file.flush()
        engine = OpaEval(str(Path(file.name)), data_json=json.dumps(data), query=f"data.policy.{rule}")
    return engine.evaluate_parsed(json.dumps(given))


ENGINES: list[Engine] = [regopy, *([regorus] if importlib.util.find_spec("opa_eval") else [])]
