"""Tells code that asks *whether* there is a worker's name from code that asks *which* name it is.

Conftests use ``if os.environ.get("PYTEST_XDIST_WORKER"):`` to find out whether they are in a
worker; the answer is the same in all workers. The bytecode after a read shows what becomes of the
value: if it is only tested, or compared with ``None``, and then dropped, nobody knows the name.
"""

from __future__ import annotations

import dis
import inspect
from bisect import bisect_right
from collections.abc import Sequence
from types import CodeType, FrameType

__all__ = ["asks_whether"]

#: Instructions that leave the value where it is (3.10: ``POP_BLOCK`` ends a ``try``).
_NOTHING = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "POP_BLOCK", "PRECALL"})
#: Instructions of a call that push neither the function nor an argument.
_NO_ARGUMENT = _NOTHING | {"KW_NAMES", "PUSH_NULL"}
_ARGUMENTS = frozenset(
    {
        "LOAD_CONST",
        "LOAD_DEREF",
        "LOAD_FAST",
        "LOAD_FAST_LOAD_FAST",  # 3.13
        "LOAD_GLOBAL",
        "LOAD_NAME",
    }
)
_CALLS = {
    "CALL": 0,
    "CALL_FUNCTION": 0,  # 3.10
    "CALL_FUNCTION_KW": 1,  # 3.10; one more argument: the keywords
    "CALL_KW": 1,  # 3.13
    "CALL_METHOD": 0,  # 3.10
}
#: Instructions that consume the value and keep at most whether it is true. A worker's name is never
#: empty, so ``name and other`` is ``other``.
_TESTS = ("POP_JUMP_", "UNARY_NOT", "TO_BOOL", "JUMP_IF_FALSE_OR_POP", "POP_TOP")
#: Functions through which local variables can be reached without naming them.
_REFLECTION = frozenset({"locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe"})

#: Functions with these flags do not return their value to the calling frame.
_NOT_CALLED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

_TESTED, _RETURNED = "tested", "returned"


def asks_whether(accessor: FrameType) -> bool:
    """Whether a worker's name is only tested for existence, however far it is returned.

    :param accessor: the frame of the function that is about to return the name.
    :returns: false if that cannot be proven.
    """
    called = accessor.f_code.co_name
    frame = accessor.f_back
    while frame is not None:
        use = _use(frame.f_code, frame.f_lasti, called)
        if use is not _RETURNED or frame.f_code.co_flags & _NOT_CALLED:
            return use is _TESTED
        called = frame.f_code.co_name
        frame = frame.f_back
    return False


def _use(code: CodeType, last: int, called: str) -> str | None:
    """What a function does with the value of its current call: tests or returns it, else ``None``.

    :param last: the offset of the calling instruction.
    :param called: the name of the function that it must call.
    """
    instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    # In Python 3.11, f_lasti may point past the instruction, into its cache entries.
    index = bisect_right([each.offset for each in instructions], last) - 1
    while instructions[index].opname == "PRECALL":  # 3.11
        index += 1
    if not _calls(instructions, index, called):
        return None
    variable = _stored(instructions, index + 1)
    if variable is None:
        return _fate(instructions, index + 1)
    if _REFLECTION.intersection(code.co_names):
        return None
    # A local variable: every use of it counts.
    fates = set()
    for number, instruction in enumerate(instructions):
        names = instruction.argval
        if instruction.opname == "STORE_FAST_LOAD_FAST":  # 3.13
            loaded = names[1] == variable
        else:
            loaded = instruction.opname.startswith("LOAD_FAST") and names == variable
            pair = isinstance(names, tuple) and "LOAD_FAST" in instruction.opname
            if pair and variable in names:
                return None  # loads two variables at once, so it is not a plain test
        if loaded:
            fates.add(_fate(instructions, number + 1))
    if None in fates:
        return None
    return _RETURNED if _RETURNED in fates else _TESTED


def _calls(instructions: Sequence[dis.Instruction], index: int, called: str) -> bool:
    """Whether an instruction calls a function of that name directly, with simple arguments."""
    call = instructions[index]
    if call.opname == "BINARY_SUBSCR":
        return called == "__getitem__"
    if call.opname not in _CALLS or call.arg is None:
        return False
    count = call.arg + _CALLS[call.opname]
    before = [
        each
        for each in instructions[:index]
        if each.opname not in _NO_ARGUMENT
        for _ in range(2 if each.opname == "LOAD_FAST_LOAD_FAST" else 1)  # 3.13
    ]
    arguments = before[len(before) - count :]
    return (
        len(before) > count
        and all(each.opname in _ARGUMENTS for each in arguments)
        and before[-count - 1].argval == called
    )


def _skip(instructions: Sequence[dis.Instruction], index: int) -> int:
    while index < len(instructions) - 1 and instructions[index].opname in _NOTHING:
        index += 1
    return index


def _stored(instructions: Sequence[dis.Instruction], index: int) -> str | None:
    """The local variable that the value is stored in, if any."""
    instruction = instructions[_skip(instructions, index)]
    if instruction.opname == "STORE_FAST":
        return str(instruction.argval)
    if instruction.opname == "STORE_FAST_LOAD_FAST":  # 3.13
        return str(instruction.argval[0])
    return None


def _fate(instructions: Sequence[dis.Instruction], index: int) -> str | None:
    """What the instructions from ``index`` on do with the value on top of the stack."""
    index = _skip(instructions, index)
    instruction = instructions[index]
    following = instructions[index + 1 : index + 3]
    if instruction.opname == "RETURN_VALUE":
        return _RETURNED
    if instruction.opname.startswith(_TESTS):
        return _TESTED
    if instruction.opname == "COPY" and instruction.arg == 1:  # 3.12: and, or
        names = [each.opname for each in following if each.opname != "TO_BOOL"]
        return _TESTED if names[:1] == ["POP_JUMP_IF_FALSE"] else None
    if instruction.opname == "LOAD_CONST" and following:
        value, operation = instruction.argval, following[0].opname
        if operation == "IS_OP" and value is None:
            return _TESTED
        # xdist says "master" where there is no worker; workers are "gw0", "gw1" and so on.
        if operation == "COMPARE_OP" and following[0].argval in ("==", "!="):
            return _TESTED if isinstance(value, str) and not value.startswith("gw") else None
    return None
