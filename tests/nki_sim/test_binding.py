"""Which ``nki`` a process gets: no SDK, the public stub, and a stand-in for the SDK, each in a
fresh one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.null

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *paths: Path) -> str:
    """Output of ``code`` in a fresh interpreter that sees the repository and ``paths``."""
    search = [str(p) for p in (*paths, ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {search!r}\n{textwrap.dedent(code)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def stub(tmp_path):
    """The public index's nki 0.0.1: importing it fails."""
    return write(
        tmp_path / "stub",
        {
            "nki/__init__.py": 'raise ImportError("WRONG PACKAGE: install nki from the Neuron '
            'index")\n'
        },
    )


@pytest.fixture
def sdk(tmp_path):
    """A stand-in for the SDK's package, with a kernel module written against it."""
    return write(
        tmp_path / "sdk",
        {
            "nki/__init__.py": """
                class Kernel:
                    def __init__(self, func, grid=1):
                        self.func, self.grid = func, grid
                    def __getitem__(self, grid):
                        return Kernel(self.func, grid)
                    def __call__(self, *args):
                        raise RuntimeError("this would need a device")
                def jit(fn=None, **kwargs):
                    return Kernel(fn)
                REAL = True
            """,
            "nki/isa/__init__.py": """
                def tensor_scalar(*args, **kwargs):
                    raise RuntimeError("not ours")
            """,
            "nki/language/__init__.py": """
                class Missing: pass
                def load(x):
                    raise RuntimeError("not ours")
            """,
            "pieces/__init__.py": "",
            "pieces/shared.py": """
                import nki.language as nl
                def double(tile):
                    return nl.multiply(tile, 2.0)
            """,
            "pieces/kernels.py": """
                import nki
                import nki.isa as nisa
                import nki.language as nl
                from .shared import double

                @nki.jit
                def scale(a):
                    from nki.language import load
                    out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
                    tile = double(load(a))
                    nisa.tensor_scalar(tile, tile, nl.add, float(nl.num_programs()))
                    if nl.program_id(0) == 0:
                        nl.store(out, tile)
                    return out
            """,
        },
    )


USE = """
import numpy as np
import nki, nki.isa as nisa, nki.language as nl
from nki.isa.constants import dge_mode
import nki.typing as nt
import importlib.util, sys
@nki.jit
def add_one(a):
    out = nl.ndarray(a.shape, a.dtype, buffer=nl.shared_hbm)
    nl.store(out, nl.add(nl.load(a), 1.0))
    return out
x = np.zeros((2, 3), np.float32)
assert (nki.simulate(add_one)(x) == 1).all() and (add_one(x) == 1).all()
assert nki.__simulator__ and nki.isa is nisa and sys.modules["nki.language"] is nl
from nki.experimental import while_loop
from nki.meta import tensor
for name in ("nki", "nki.isa", "nki.language", "nki.typing", "nki.collectives", "nki.experimental"):
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.name == name, name
    assert sys.modules[name].__spec__ is spec
"""


def test_without_sdk_ours_is_registered():
    out = python(
        "import nki_sim, sys\nassert 'nki' not in sys.modules\n"
        "assert nki_sim.binding.find_sdk() is None\n"
        "first = nki_sim.install()\nassert nki_sim.install() is first\n"
        f"assert nki_sim.binding.bind() is first\n{USE}\nprint('done')"
    )
    assert out == "done"


def test_importing_the_simulator_registers_nothing_and_needs_no_torch():
    out = python("import nki_sim, sys; print('nki' in sys.modules, 'torch' in sys.modules)")
    assert out == "False False"


def test_the_public_stub_is_not_the_sdk(stub):
    out = python(
        "import nki_sim\nassert nki_sim.binding.find_sdk() is None\n"
        f"nki_sim.binding.bind()\n{USE}\nprint('done')",
        stub,
    )
    assert out == "done"


def test_a_namespace_folder_is_not_the_sdk(tmp_path):
    (tmp_path / "nki").mkdir()
    assert python("import nki_sim; print(nki_sim.binding.find_sdk())", tmp_path) == "None"


def test_the_sdk_is_never_replaced(sdk):
    out = python(
        """
        import nki_sim
        assert nki_sim.binding.find_sdk().origin.endswith("nki/__init__.py")
        try:
            nki_sim.install()
        except nki_sim.BindingError as error:
            print("refused:", "nki_sim.simulate" in str(error))
        assert nki_sim.binding.bind().REAL
        """,
        sdk,
    )
    assert out == "refused: True"


def test_simulate_beside_the_sdk_loads_the_kernel_again(sdk):
    out = python(
        """
        import numpy as np, sys
        import nki_sim
        from pieces.kernels import scale
        import pieces.kernels, pieces.shared
        x = np.ones((2, 3), np.float32)
        print(nki_sim.simulate(scale, target="trn1")(x).sum())
        print(nki_sim.simulate(scale[2], target="trn2")(x).sum())
        assert sys.modules["nki"].REAL and pieces.kernels.nl is sys.modules["nki.language"]
        assert pieces.kernels.scale is scale and not hasattr(pieces.shared.nl, "multiply")
        """,
        sdk,
    )
    assert out.split() == ["18.0", "24.0"]


def test_a_local_kernel_of_the_sdk_cannot_be_loaded_again(sdk):
    out = python(
        """
        import nki, nki.language as nl
        import nki_sim
        def make():
            @nki.jit
            def kernel(a):
                return nl.load(a)
            return kernel
        try:
            nki_sim.simulate(make())
        except nki_sim.SimulatorError as error:
            print("top level" in str(error))
        """,
        sdk,
    )
    assert out == "True"
