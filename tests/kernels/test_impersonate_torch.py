"""What programs for a GPU touch of torch besides tensors: threads, autocast, streams, pinned memory, old names."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import tutorial_kernels as tutorials  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from kernbench.kernels.triton_backend import gpus  # noqa: E402
from kernbench.triton import impersonate  # noqa: E402


@pytest.fixture
def gpu():
    with impersonate("cuda:90") as ctx:
        yield ctx


class TestThreads:
    def test_they_see_the_gpu_and_launch_in_turns(self, gpu):
        def work(seed: int) -> bool:
            x = torch.full((5000,), float(seed), device="cuda")
            out = torch.empty_like(x)
            for _ in range(5):
                tutorials.add(x, x, out)
            return x.is_cuda and bool((out == 2 * seed).all())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(12)))

    def test_one_that_lives_on_is_as_before(self):
        go, seen = threading.Event(), []

        def late() -> None:
            go.wait()
            seen.append(torch.ones(1).is_cuda)

        with impersonate("cuda:80"), impersonate("cuda:90"):
            thread = threading.Thread(target=late)
            thread.start()
        go.set()
        thread.join()
        assert seen == [False]
        assert "run" not in vars(thread)

    def test_one_that_lives_on_sees_the_next_gpu(self):
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2):
                with impersonate("cuda:80"), impersonate("cuda:90"):
                    made = pool.submit(torch.ones, 1, device="cuda").result()
                    assert made.is_cuda and pool.submit(lambda x: x.device.type, made).result() == "cuda"

    def test_data_parallel_on_one_gpu(self, gpu):
        layer = torch.nn.DataParallel(torch.nn.Linear(4, 2).cuda())
        x = torch.ones(3, 4, device="cuda")
        torch.testing.assert_close(layer(x), layer.module(x))


def test_tensors_are_where_they_are_after_an_impersonation_within_another(gpu):
    with impersonate("cuda:80"):
        tensors = torch.ones(1, device="cuda"), torch.ones(1, device="cuda").cpu(), torch.ones(1, pin_memory=True)
    assert [x.device.type for x in tensors] == ["cuda", "cpu", "cpu"]
    assert [x.is_pinned() for x in tensors] == [False, False, True]


def test_nothing_is_left_where_a_device_was_entered_and_not_left():
    with impersonate("cuda:90"):
        device = torch.device("cuda")
        device.__enter__()
    try:
        assert torch.ones(1).device.type == "cpu"
    finally:
        device.__exit__(None, None, None)


class TestAutocast:
    HALF = torch.float16

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("softmax", torch.float32),
            ("layer_norm", torch.float32),
            ("exp", torch.float32),
            ("pow", torch.float32),
            ("sum", torch.float32),
            ("norm", torch.float32),
            ("cross_entropy", torch.float32),
            ("mv", HALF),
            ("matmul", HALF),
            ("gelu", HALF),
            ("addcmul", torch.float32),
            ("double", torch.float64),
        ],
    )
    def test_types_are_cudas(self, gpu, name, expected):
        h, x = torch.rand(4, 4, device="cuda").half(), torch.rand(4, 4, device="cuda")
        made = {
            "softmax": lambda: F.softmax(h, -1),
            "layer_norm": lambda: F.layer_norm(h, (4,)),
            "exp": lambda: h.exp(),
            "pow": lambda: h**2,
            "sum": lambda: h.sum(),
            "norm": lambda: h.norm(),
            "cross_entropy": lambda: F.cross_entropy(h, torch.arange(4, device="cuda")),
            "mv": lambda: torch.mv(x, x[0]),
            "matmul": lambda: x @ x,
            "gelu": lambda: F.gelu(h),
            "addcmul": lambda: torch.addcmul(h, x, h),
            "double": lambda: x.double().softmax(-1).sum(),
        }[name]
        with torch.autocast("cuda", self.HALF):
            assert made().dtype == expected
            with torch.autocast("cuda", enabled=False):
                assert made().dtype in (h.dtype, x.dtype, torch.float64)

    def test_float32_is_what_is_computed_and_gradients_come_back(self, gpu):
        x = torch.randn(64, 64, device="cuda").half().requires_grad_()
        with torch.autocast("cuda", torch.float16):
            out = x.softmax(-1)
            assert x.sum(dtype=torch.float16).dtype == torch.float16
        torch.testing.assert_close(out, x.float().softmax(-1), rtol=0, atol=0)
        out.square().sum().backward()
        assert x.grad.dtype == torch.float16 and x.grad.abs().max() > 0

    def test_the_cpus_own_stays_the_cpus(self, gpu):
        x = torch.ones(4, 4).bfloat16()
        with torch.autocast("cuda"):
            pass
        with torch.autocast("cpu", torch.bfloat16):
            assert x.softmax(-1).dtype == torch.bfloat16

    def test_nothing_of_it_stays(self):
        def made() -> torch.dtype:
            with torch.autocast("cpu", torch.bfloat16):
                return torch.ones(4).bfloat16().exp().dtype

        before = made()
        with impersonate(), torch.autocast("cuda"):
            pass
        assert made() == before == torch.bfloat16
        assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::exp", "AutocastCPU")


def test_streams_are_of_the_types_that_torch_has(gpu):
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    assert isinstance(current, torch.cuda.Stream) and isinstance(side, torch.Stream)
    assert current.device == torch.device("cuda", 0) and isinstance(side.record_event(), torch.cuda.Event)
    with side, torch.cuda.stream(current), torch.cuda.stream(None), torch.cuda.stream(side):
        assert torch.cuda.current_stream() == side == torch.cuda.ExternalStream(side.cuda_stream)
    assert torch.cuda.current_stream() == current
    with pytest.raises(RuntimeError, match="no stream has the number 99"):
        torch.cuda.ExternalStream(99)
    start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    start.record()
    end.record()
    assert start.elapsed_time(end) >= 0

    class Mine(torch.cuda.CUDAGraph):  # as libraries write at their top level
        graph: "torch.cuda.CUDAGraph | None" = None

    assert isinstance(torch.cuda.CUDAGraph | None, object)
    with pytest.raises(NotImplementedError, match="CUDA graphs"):
        Mine()


def test_the_accelerator_is_the_gpu(gpu):
    assert torch.accelerator.current_accelerator().type == "cuda"
    assert torch.accelerator.is_available() and torch.accelerator.device_count() == 1
    assert torch.get_device_module() is torch.cuda
    torch.accelerator.synchronize()


def test_pinned_memory_is_the_hosts(gpu):
    for pinned in (torch.ones(4, device="cuda").pin_memory(), torch.empty(4, pin_memory=True)):
        assert pinned.is_pinned() and pinned.device.type == "cpu"
        assert pinned.pin_memory() is pinned and not pinned.cuda().is_pinned()
    x = torch.ones(4, device="cuda")
    assert x.record_stream(torch.cuda.current_stream()) is None


def test_names_from_before_dtypes(gpu):
    x = torch.cuda.HalfTensor([1, 2])
    assert x.dtype == torch.float16 and x.is_cuda and x.type() == "torch.cuda.HalfTensor"
    assert isinstance(x, torch.cuda.HalfTensor) and not isinstance(x.cpu(), torch.cuda.HalfTensor)
    assert x.type("torch.cuda.LongTensor").tolist() == [1, 2] and x.type(torch.cuda.IntTensor).dtype == torch.int32
    assert x.cpu().type() == "torch.HalfTensor" and torch.cuda.FloatTensor(2, 3).shape == (2, 3)
    try:
        torch.set_default_tensor_type("torch.cuda.DoubleTensor")
        assert torch.ones(1).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_was_saved_is_loaded_to_the_gpu(gpu):
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0, device="cuda")}, file)
    for place in ("cuda", torch.device("cuda", 0)):
        file.seek(0)
        assert torch.load(file, map_location=place)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("target", "kib"), [("cuda:75", 64), ("cuda:80", 163), ("cuda:89", 99), ("cuda:90", 227)])
def test_shared_memory_is_the_gpus(target, kib):
    with impersonate(target) as ctx:
        properties = torch.cuda.get_device_properties(0)
        asked = triton.runtime.driver.active.utils.get_device_properties(0)
        assert properties.shared_memory_per_block_optin == asked["max_shared_mem"] == kib * 1024
        clock, bits = asked["mem_clock_rate"], asked["mem_bus_width"]
        assert (clock, bits) == (properties.memory_clock_rate, properties.memory_bus_width)
        assert triton.testing.get_dram_gbps(0) == pytest.approx(ctx.target.hbm_bandwidth * 1e-9, rel=1e-3)
    assert gpus.shared_memory(61) == 48 * 1024


def test_the_scratchpad_is_the_limit_all_the_same(gpu):
    """More than a GPU has of shared memory, less than a PE's 2 MiB: it runs, and host code divides as on a GPU."""
    x, out = torch.randn(2, 90000, device="cuda"), torch.empty(2, 90000, device="cuda")
    args = (out, x, x.stride(0), out.stride(0), 2, 90000)
    kernel = tutorials.softmax_kernel.warmup(*args, BLOCK_SIZE=131072, num_stages=1, grid=(1,))
    assert kernel.metadata.shared == 227 * 1024
    tutorials.softmax_kernel[(2,)](*args, BLOCK_SIZE=131072, num_stages=1)
    torch.testing.assert_close(out, x.softmax(1))


class Pair(torch.Tensor):
    """Two tensors of the same shape in one, as libraries keep numbers and their scales."""

    @staticmethod
    def __new__(cls, a: torch.Tensor, b: torch.Tensor) -> "Pair":
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype, device=a.device)

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b

    def __tensor_flatten__(self):
        return ["a", "b"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        one, other = ([getattr(x, part) if isinstance(x, cls) else x for x in args] for part in ("a", "b"))
        made = func(*one, **(kwargs or {}))
        return cls(made, func(*other, **(kwargs or {}))) if isinstance(made, torch.Tensor) else made


def test_tensors_of_a_programs_own_class(gpu):
    x = Pair(torch.ones(4, 4, device="cuda"), torch.zeros(4, 4, device="cuda"))
    assert x.is_cuda and x[1].is_cuda and x.cuda() is x
    there = x.cpu()
    there.a.add_(1)
    assert there.device == there.a.device == there.b.device == torch.device("cpu")
    assert x.a.sum() == 16 and there.cuda().a.is_cuda
    assert there.pin_memory().b.is_pinned() and not there.a.is_pinned()
