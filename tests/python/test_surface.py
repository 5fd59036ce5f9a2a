"""The names, arguments and defaults of the package: none may go or change unnoticed.

`golden/surface.txt` is the copy to compare with; `python tests/python/test_surface.py` writes it
anew after an intended change.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import nixl
import nixl._api
import nixl._bindings
import nixl._utils
import nixl.aio
import pytest

GOLDEN = Path(__file__).parent / "golden" / "surface.txt"

# What the guide, SGLang, vLLM, LMCache and Dynamo take from `nixl` and `nixl._api`.
_ESTABLISHED = """
nixl_agent nixl_agent_config nixl_xfer_handle nixl_prepped_dlist_handle nixl_backend_handle
nixl_thread_sync_t nixlBind DEFAULT_COMM_PORT NIXL_INIT_AGENT logger get_logger
setup_logging set_log_level_by_env LOGGING_CONFIG
nixlAgent nixlAgentConfig nixlXferDList nixlRegDList nixlRemoteDList nixlXferTelemetry
nixl_mem_t nixl_xfer_op_t nixl_status_t nixl_cost_t
DRAM_SEG VRAM_SEG BLK_SEG OBJ_SEG FILE_SEG NIXL_READ NIXL_WRITE NIXL_COST_ANALYTICAL_BACKEND
NIXL_IN_PROG NIXL_SUCCESS NIXL_ERR_NOT_POSTED NIXL_ERR_INVALID_PARAM NIXL_ERR_BACKEND
NIXL_ERR_NOT_FOUND NIXL_ERR_MISMATCH NIXL_ERR_NOT_ALLOWED NIXL_ERR_REPOST_ACTIVE NIXL_ERR_UNKNOWN
NIXL_ERR_NOT_SUPPORTED NIXL_ERR_REMOTE_DISCONNECT NIXL_ERR_CANCELED NIXL_ERR_NO_TELEMETRY
NIXL_THREAD_SYNC_NONE NIXL_THREAD_SYNC_STRICT NIXL_THREAD_SYNC_RW NIXL_THREAD_SYNC_DEFAULT
nixlNotPostedError nixlInvalidParamError nixlBackendError nixlNotFoundError nixlMismatchError
nixlNotAllowedError nixlRepostActiveError nixlUnknownError nixlNotSupportedError
nixlRemoteDisconnectError nixlCancelledError nixlNoTelemetryError
malloc_passthru free_passthru ba_buf verify_transfer HAVE_UCX_GPU_DEVICE_API
"""
ESTABLISHED = _ESTABLISHED.split()

_RAW_METHODS = """
getAvailPlugins getPluginParams getBackendParams createBackend registerMem deregisterMem queryMem
makeConnection prepXferDlist makeXferReq createXferReq estimateXferCost postXferReq getXferStatus
getXferTelemetry queryXferBackend releaseXferReq releasedDlistH prepMemView releaseMemView
getNotifs genNotif getLocalMD getLocalPartialMD loadRemoteMD invalidateRemoteMD sendLocalMD
sendLocalPartialMD fetchRemoteMD invalidateLocalMD checkRemoteMD
"""
RAW_METHODS = _RAW_METHODS.split()


def plain(value: object) -> str:
    """A default value, without what differs between builds."""
    return f"{type(value).__name__}" if " at 0x" in repr(value) else repr(value)


def arguments(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    shown = []
    star = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        default = "" if parameter.default is parameter.empty else f"={plain(parameter.default)}"
        shown.append(parameter.name + default)
    return f"({', '.join(shown)})"


def members(kind: type) -> list[str]:
    lines = []
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("nixl") or base.__module__ == "nixl._bindings":
            continue
        for name, value in vars(base).items():
            if name.startswith("_") and name not in ("__init__", "__enter__", "__await__"):
                continue
            if inspect.isfunction(value):
                lines.append(f"{kind.__name__}.{name}{arguments(value)}")
            elif isinstance(value, property):
                lines.append(f"{kind.__name__}.{name}")
    return lines


def surface() -> str:
    lines = set()
    for module in (nixl, nixl._api, nixl._utils, nixl.aio):
        names = getattr(module, "__all__", None) or ["wait_handle", "wait_notifs"]
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__.startswith("nixl."):
                lines.add(f"{module.__name__}.{name}")
                lines.update(members(value))
            elif inspect.isfunction(value):
                lines.add(f"{module.__name__}.{name}{arguments(value)}")
            else:
                lines.add(f"{module.__name__}.{name}")
    return "\n".join(sorted(lines)) + "\n"


def test_the_surface_is_the_golden_one():
    assert surface() == GOLDEN.read_text()


def test_established_names_are_there():
    assert [name for name in ESTABLISHED if not hasattr(nixl, name)] == []
    for name in ESTABLISHED[:7]:
        assert getattr(nixl._api, name) is getattr(nixl, name)
    assert [name for name in RAW_METHODS if not hasattr(nixl.nixlAgent, name)] == []


def stub_classes() -> dict[str, dict[str, list[list[str]]]]:
    """Per class of the stub (and "" for the module) its functions and their argument names."""
    tree = ast.parse((Path(nixl.__file__).parent / "_bindings.pyi").read_text())
    found: dict[str, dict[str, list[list[str]]]] = {"": {}}

    def take(node: ast.AST, owner: str) -> None:
        if isinstance(node, ast.FunctionDef):
            every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            found[owner].setdefault(node.name, []).append([a.arg for a in every])
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[owner].setdefault(node.target.id, [])
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[owner].setdefault(node.targets[0].id, [])

    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {}
            for item in node.body:
                take(item, node.name)
        else:
            take(node, "")
    return found


def bound_arguments(function: object) -> list[list[str]]:
    """Argument names of a bound function, by overload, from the signatures it documents."""
    found = []
    for line in (getattr(function, "__doc__", "") or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$", line.strip())
        if match:
            inside = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", match.group(1)))
            inside = re.sub(r"\([^()]*\)|'[^']*'", "", inside)
            names = [part.partition(":")[0].partition("=")[0].strip() for part in inside.split(",")]
            found.append([name for name in names if name not in ("", "/", "*")])
    return found


PYTHONS_OWN = {
    "__module__",
    "__doc__",
    "__weakref__",
    "__new__",
    "__qualname__",
    "__dictoffset__",
    "__weaklistoffset__",
    "__firstlineno__",
    "__static_attributes__",
    "__dict__",
}


@pytest.mark.parametrize(
    "name",
    [name for name in dir(nixl._bindings) if name.startswith("nixl") and "Error" not in name],
)
def test_the_stub_declares_what_the_class_has(name):
    stub = stub_classes()[name]
    kind = getattr(nixl._bindings, name)
    if hasattr(kind, "__members__"):
        assert set(kind.__members__) == set(stub)
        return
    real = {key: value for key, value in vars(kind).items() if key not in PYTHONS_OWN}
    assert set(real) == set(stub)
    for key, value in real.items():
        documented = bound_arguments(value)
        if stub[key] and documented:
            assert stub[key] == documented, f"{name}.{key}"


def test_the_stub_declares_what_the_module_has():
    stub = stub_classes()
    real = {name for name in dir(nixl._bindings) if not re.fullmatch(r"__\w+__", name)}
    imported = {name for name in real if name.endswith("Error")}
    # _Handle and _Side are type variables of the stub itself.
    declared = (set(stub) | set(stub[""])) - {"", "_Handle", "_Side", "__version__"}
    assert real - imported == declared
    for name in ("_closeAll", "_bufferRange", "_mallocPassthru", "_verifyTransfer"):
        assert bound_arguments(getattr(nixl._bindings, name)) == stub[""][name]


def test_it_is_typed():
    assert (Path(nixl.__file__).parent / "py.typed").exists()


def test_other_names_of_the_package(run_python):
    run_python(
        """
import nixl, nixl_cu12, nixl_cu13
import nixl_cu12._api, nixl_cu13._bindings, nixl_cu12._utils
from nixl_cu13._api import nixl_agent
assert nixl_agent is nixl.nixl_agent is nixl_cu12.nixl_agent
assert nixl_cu12._api is nixl._api and nixl_cu13._bindings is nixl._bindings
from nixl_cu13.logging import get_logger
assert get_logger is nixl.get_logger and nixl_cu12.logging is nixl.logging
assert nixl_cu12.malloc_passthru is nixl._utils.malloc_passthru
"""
    )


def test_importing_needs_neither_numpy_nor_torch(run_python):
    result = run_python(
        "import nixl, sys; print([m for m in ('numpy', 'torch', 'cuda', 'asyncio', 'ctypes') if m"
        " in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


def test_the_version_is_at_least_what_clients_ask_for():
    assert tuple(int(part) for part in nixl.__version__.split(".")[:2]) >= (1, 6)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(surface())
