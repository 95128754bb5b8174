"""``nki.jit`` and ``nki.simulate``: calling a kernel on arrays runs it on simulated NeuronCores."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from nki_sim import rules
from nki_sim.arrays import Argument, is_torch, replace_arrays, to_numpy, to_torch
from nki_sim.errors import SimulatorError
from nki_sim.launch import run_cores
from nki_sim.loop_memory import check_loop_memory
from nki_sim.machine import Core, Launch, current_or_none
from nki_sim.memory import HBM, NEVER, PRIVATE_HBM
from nki_sim.targets import Target, get_target
from nki_sim.tensor import NkiTensor
from nki_sim.trace import Trace
from nki_sim.usage import check_capacity
from nki_sim.wide import settle


class Kernel:
    """A function decorated with ``@nki.jit``.

    ``kernel(...)`` runs it on one core, ``kernel[lnc](...)`` on ``lnc``. Inside another kernel it
    is an ordinary function call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        lnc: int = 1,
        schedule: tuple[tuple[str, tuple[str, ...]], ...] = (),
    ) -> None:
        self.func = function
        self.lnc = lnc
        self.schedule = schedule
        functools.update_wrapper(self, function)

    def __get__(self, instance: Any, owner: Any = None) -> Kernel:
        """A kernel that is a method, bound to its object."""
        if instance is None:
            return self
        return Kernel(types.MethodType(self.func, instance), self.lnc, self.schedule)

    def __getitem__(self, lnc: Any) -> Kernel:
        """The kernel on ``lnc`` cores (1 or 2)."""
        if isinstance(lnc, tuple) and len(lnc) == 1:
            lnc = lnc[0]
        if lnc.__class__ is not int:
            raise TypeError(f"kernel[{lnc!r}]: the launch grid is one integer, the number of cores")
        return Kernel(self.func, lnc, self.schedule)

    def with_schedule(self, edges: Any) -> Kernel:
        """The kernel with more order among its named instructions (Scheduling APIs guide).

        Args:
            edges: pairs (name, name or names): the first instruction runs after the others. The
                record keeps them beside those of ``depends_on``; simulation is in program order.
        """
        schedule = []
        for edge in edges:
            if not (isinstance(edge, (tuple, list)) and len(edge) == 2):
                raise TypeError(f"with_schedule: {edge!r} is not a pair of instruction names")
            dependent, producers = edge
            names = (producers,) if isinstance(producers, str) else tuple(producers)
            if not all(isinstance(n, str) for n in (dependent, *names)):
                raise TypeError(f"with_schedule: {edge!r} holds something that is not a name")
            schedule.append((dependent, names))
        return Kernel(self.func, self.lnc, tuple(schedule))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_or_none() is not None:
            return self.func(*args, **kwargs)
        return Simulation(self)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<nki kernel {getattr(self, '__name__', self.func)}>"


def jit(fn: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Mark a function as a kernel; also usable as ``@nki.jit(mode=...)``.

    Keywords of older NKI versions (``mode``, ``debug_kernel``, ``show_compiler_tb``,
    ``experimental_flags``, ``platform_target``) say how to compile and mean nothing here.
    """
    if fn is None:
        return jit
    return fn if isinstance(fn, Kernel) else Kernel(fn)


class Simulation:
    """A kernel bound to simulated cores; call it with arrays.

    Args:
        kernel: a ``Kernel`` or a plain function.
        target: generation or instance family; default as ``targets.get_target`` says.
        trace: a ``Trace`` to fill.
        exact_matmul: sum matmuls in an order that does not depend on tile shapes (slower).
        shapes_only: check and record every instruction but compute nothing; the call returns None.
    """

    def __init__(
        self,
        kernel: Any,
        target: str | Target | None = None,
        trace: Trace | None = None,
        exact_matmul: bool = False,
        shapes_only: bool = False,
    ) -> None:
        self.kernel = kernel if isinstance(kernel, Kernel) else Kernel(kernel)
        self._target = target
        self._trace = trace
        self._exact_matmul = exact_matmul
        self._shapes_only = shapes_only
        self._prepared: Launch | None = None

    def keep_calls(self) -> Launch:
        """Prepare a launch that keeps every instruction for ``replay``; the next call uses it."""
        trace = Trace() if self._trace is None else self._trace
        self._prepared = Launch(
            get_target(self._target), trace, self.kernel.lnc, self._exact_matmul
        )
        self._prepared.calls = {}
        return self._prepared

    def __getitem__(self, lnc: Any) -> Simulation:
        return Simulation(
            self.kernel[lnc], self._target, self._trace, self._exact_matmul, self._shapes_only
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kernel = self.kernel
        target = get_target(self._target)
        if not 1 <= kernel.lnc <= target.max_lnc:
            rules.broken(rules.KERNEL_LNC, "lnc", kernel.lnc, target.generation)
        trace = Trace() if self._trace is None else self._trace
        launch, self._prepared = self._prepared, None
        if launch is None:
            launch = Launch(target, trace, kernel.lnc, self._exact_matmul, self._shapes_only)
        names = _names(kernel.func, args)
        seen: dict[int, Argument] = {}
        torch_result = False

        def as_argument(array: Any, name: str) -> NkiTensor:
            nonlocal torch_result
            torch_result = torch_result or is_torch(array)
            if id(array) not in seen:
                seen[id(array)] = Argument(array, launch, name)
            return seen[id(array)].tensor

        inputs = [
            replace_arrays(value, name, as_argument)
            for value, name in zip(args, names, strict=True)
        ]
        keywords = {k: replace_arrays(v, k, as_argument) for k, v in kwargs.items()}
        cores = [Core(launch, i) for i in range(kernel.lnc)]
        results = run_cores(cores, kernel.func, inputs, keywords)
        settle(launch.overlays)
        trace.instructions.sort(key=lambda i: i.index)
        _order(trace, kernel.schedule)
        check_capacity(trace, target)
        check_loop_memory(trace)
        if self._shapes_only:
            return None
        arguments = list(seen.values())
        output = _collect(results[0], arguments, cores[0], torch_result)
        for argument in arguments:
            argument.finish()
        return output


def _order(trace: Trace, schedule: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    """Write the edges of ``with_schedule`` into the record.

    Raises:
        SimulatorError: where an instruction of that name does not exist or runs earlier.
    """
    for dependent, producers in schedule:
        for producer in producers:
            pairs = [[i for i in trace if i.name == name] for name in (dependent, producer)]
            for name, found in zip((dependent, producer), pairs, strict=True):
                if not found:
                    raise SimulatorError(f"with_schedule: no instruction is named {name!r}")
            for late in pairs[0]:
                before = [e for e in pairs[1] if e.core == late.core]
                if before and min(e.index for e in before) > late.index:
                    raise SimulatorError(
                        f"with_schedule: {dependent!r} is to run after {producer!r}, which the "
                        "kernel issues later; an order against program order is not simulated"
                    )
                earlier = [e for e in before if e.index < late.index]
                for e in earlier:
                    late.check_follows(e)
                late.after = (*late.after, *(e.index for e in earlier))


def _names(function: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Parameter names for positional arguments, for messages and the trace."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = []
    return [parameters[i] if i < len(parameters) else f"arg{i}" for i in range(len(args))]


def _collect(result: Any, arguments: list[Argument], core: Core, as_torch: bool) -> Any:
    """What the kernel returned, as the caller's kind of arrays."""
    if isinstance(result, NkiTensor):
        if result.buffer not in HBM:
            rules.broken(rules.KERNEL_OUTPUT, "returned tensor", result.buffer.value)
        for argument in arguments:
            whole = result.storage is argument.tensor.storage and result.covers_storage()
            if whole and tuple(result.shape) == tuple(argument.original.shape):
                return argument.original
        if result.buffer is PRIVATE_HBM and not result.storage.info.argument:
            core.note("private-output", "a kernel's outputs must be nl.shared_hbm since NKI 0.3.0")
        state = core.states_of(result)
        if (state == NEVER) if isinstance(state, int) else not state.all():
            core.note("unwritten-output", f"returned {result.access!r} has elements nothing wrote")
        return to_torch(result) if as_torch else to_numpy(result)
    if isinstance(result, tuple) and hasattr(result, "_fields"):  # a named tuple
        return type(result)(*(_collect(r, arguments, core, as_torch) for r in result))
    if isinstance(result, (tuple, list)):
        return type(result)(_collect(r, arguments, core, as_torch) for r in result)
    if isinstance(result, dict):
        return {k: _collect(r, arguments, core, as_torch) for k, r in result.items()}
    return result


def simulate(kernel: Any) -> Simulation:
    """A callable that runs ``kernel`` on the CPU; arrays in, the same kind of arrays out."""
    return Simulation(kernel)
